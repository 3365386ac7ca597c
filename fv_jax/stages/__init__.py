"""The trained systems, one file each. `protocol` defines what a stage is, `latent_stage` what most of them share."""
