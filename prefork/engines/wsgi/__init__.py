"""The engine for WSGI: one epoll loop for connections, and threads for the application."""
