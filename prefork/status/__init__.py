"""From shared memory to what people and programs read: scoreboard, status document, metrics, deaths."""
