"""Film and latents: records, video files, transforms, degradations, the loader, the embedded film."""
