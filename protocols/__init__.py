"""Pure state machines and wire messages: `handle(event, now) -> list[Effect]`, and nothing that touches the world."""
