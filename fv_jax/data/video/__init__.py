"""Video files: decoding and encoding, shots, clips, captions, contact sheets."""
