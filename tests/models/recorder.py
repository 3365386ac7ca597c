"""A network in place of the VAE's that shows what its halves are called with."""

from fv_jax.models.vae import OFFICIAL


class Recorder:
    """Copies of what it is given, larger or smaller; notes its sizes and the caches it came with.

    It hands on the number of chunks so far as the cache.
    """

    config = OFFICIAL

    def __init__(self):
        self.sizes, self.caches = [], []

    @property
    def chunks(self) -> list[int]:
        """Frames of each call."""
        return [frames for frames, _, _ in self.sizes]

    @property
    def widths(self) -> list[int]:
        return [width for _, _, width in self.sizes]

    def note(self, x, cache):
        self.sizes.append(x.shape[1:4])
        self.caches.append(cache)
        return {'chunks': cache.get('chunks', 0) + 1}

    def encoder(self, x, cache):
        """Every fourth frame."""
        return x[:, 3 if cache else 0 :: 4, ::8, ::8], self.note(x, cache)

    def decoder(self, z, cache):
        """Every latent is a cube of 4x8x8, the first one of 1x8x8."""
        video = z.repeat(4, axis=1).repeat(8, axis=2).repeat(8, axis=3)
        return video[:, 3 if not cache and z.shape[1] % 2 else 0 :], self.note(z, cache)
