"""How a worker serves. An engine is chosen by the kind of the app, never by the user."""
