"""The process of --admin: health, metrics and a live page, served beside the workers."""
