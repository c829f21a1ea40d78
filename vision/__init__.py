"""Images of prompts: read once, and put before a model as its family wants them."""
