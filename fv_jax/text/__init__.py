"""Text encoders: the protocol, tokenizers, and the encoders themselves."""
