"""Pipelines of diffusers for FlashVideo's two stages (arXiv:2502.05179). `fv_jax.export --format=diffusers` wrote this.

    preview = DiffusionPipeline.from_pretrained(PREVIEW, trust_remote_code=True)
    enhance = DiffusionPipeline.from_pretrained(ENHANCE, trust_remote_code=True)
    frames = preview(prompt, output_type='pt').frames           # (B, F, 3, H, W) in [0, 1]
    video = enhance(frames, prompt).frames[0]

Without guidance's condition both networks were trained on a text of zeros, not on the empty prompt.
"""

import numpy as np
import torch
from diffusers import CogVideoXPipeline
from diffusers.pipelines.cogvideo.pipeline_output import CogVideoXPipelineOutput
from diffusers.utils.torch_utils import randn_tensor

ENCODE_FRAMES = 16  # frames that the VAE's encoder takes at a time; its group norms depend on it


class FlashVideoPreviewPipeline(CogVideoXPipeline):
    """Text to a low-resolution video: `CogVideoXPipeline` with zeros as the unconditional text."""

    _optional_components = ['text_encoder', 'tokenizer']  # noqa: RUF012 (a list in diffusers)

    def encode_prompt(
        self,
        prompt,
        negative_prompt=None,
        do_classifier_free_guidance=True,
        num_videos_per_prompt=1,
        prompt_embeds=None,
        negative_prompt_embeds=None,
        max_sequence_length=226,
        device=None,
        dtype=None,
    ):
        """Encodes prompts; without a negative prompt, the unconditional embeddings are zeros."""
        prompt_embeds, negative_prompt_embeds = super().encode_prompt(
            prompt,
            negative_prompt,
            do_classifier_free_guidance and negative_prompt is not None,
            num_videos_per_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            max_sequence_length,
            device,
            dtype,
        )
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            negative_prompt_embeds = torch.zeros_like(prompt_embeds)
        return prompt_embeds, negative_prompt_embeds


class FlashVideoEnhancePipeline(FlashVideoPreviewPipeline):
    """A low-resolution video to a high-resolution one, by flow matching from its noised latents.

    Args (of the constructor, besides the components; model_index.json has those of the exported network):
      signal_share: a in source = a z_low + sqrt(1 - a^2) noise.
      num_inference_steps, guidance_scale: the defaults of a call.
      prompt_prefix: precedes every prompt.
      sample_posterior: whether the VAE's latents are sampled, or are its means.
      text_length: tokens of a text.
    """

    def __init__(
        self,
        tokenizer,
        text_encoder,
        vae,
        transformer,
        scheduler,
        signal_share=0.2639587,
        num_inference_steps=5,
        guidance_scale=13.0,
        prompt_prefix='medium motion,',
        sample_posterior=True,
        text_length=226,
    ):
        super().__init__(tokenizer, text_encoder, vae, transformer, scheduler)
        self.register_to_config(
            signal_share=signal_share,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            prompt_prefix=prompt_prefix,
            sample_posterior=sample_posterior,
            text_length=text_length,
        )
        vae.num_sample_frames_batch_size = ENCODE_FRAMES

    @torch.no_grad()
    def __call__(
        self,
        video,
        prompt='',
        height=None,
        width=None,
        num_inference_steps=None,
        guidance_scale=None,
        generator=None,
        noise=None,
        prompt_embeds=None,
        output_type='np',
        return_dict=True,
    ):
        """Enhances videos of as many frames as the network was exported for.

        Args:
          video: (B, F, 3, H, W) tensor in [0, 1]; or (F, H, W, 3) array in [0, 1], or a list of PIL images.
          prompt: a text, or one for each video.
          height, width: of the result; by default those that the network was exported for.
          num_inference_steps, guidance_scale: by default those of the config; 1 is no guidance.
          generator: of the noise, and of the VAE's latents.
          noise: unit normal (B, F', C, H', W'); drawn by default.
          prompt_embeds: (B, L, D), instead of a prompt.
          output_type: 'np', 'pt', 'pil' or 'latent'.
          return_dict: whether to return a `CogVideoXPipelineOutput` or a tuple.
        """
        config, device, dtype = self.config, self._execution_device, self.transformer.dtype
        scale = config.guidance_scale if guidance_scale is None else guidance_scale
        steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        frames = self._resize(_to_tensor(video), height, width).to(device, self.vae.dtype)
        source = self._make_source(frames, generator, noise)
        if prompt_embeds is None:
            prompt_embeds = self._encode(prompt, source.shape[0], device)
        text = prompt_embeds.to(device, dtype)
        latents = self._integrate(source.float(), text, steps, scale)
        if output_type == 'latent':
            result = latents
        else:
            decoded = self.decode_latents(latents.to(self.vae.dtype))
            result = self.video_processor.postprocess_video(video=decoded.float(), output_type=output_type)
        self.maybe_free_model_hooks()
        return CogVideoXPipelineOutput(frames=result) if return_dict else (result,)

    def _integrate(self, latents, text, steps, scale):
        """Integrates from the source to data by Euler steps, with guidance against a text of zeros."""
        guided = scale != 1
        if guided:
            text = torch.cat([text, torch.zeros_like(text)])
        size = [self.vae_scale_factor_spatial * side for side in latents.shape[-2:]]
        rotary = self._prepare_rotary_positional_embeddings(*size, latents.shape[1], latents.device)
        # Not the scheduler's own grid, which ends before the data.
        self.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), device=latents.device)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            inputs = torch.cat([latents] * 2) if guided else latents
            predicted = self.transformer(
                hidden_states=inputs.to(text.dtype),
                encoder_hidden_states=text,
                timestep=timestep.expand(inputs.shape[0]),
                image_rotary_emb=rotary,
                return_dict=False,
            )[0].float()
            if guided:
                conditional, unconditional = predicted.chunk(2)
                predicted = unconditional + scale * (conditional - unconditional)
            latents = self.scheduler.step(predicted, timestep, latents, return_dict=False)[0]
        return latents

    def _resize(self, frames, height, width):
        """Resizes (B, F, 3, H, W) bilinearly, with antialiasing, and maps it from [0, 1] to [-1, 1]."""
        spatial, sample = self.vae_scale_factor_spatial, self.transformer.config
        size = height or spatial * sample.sample_height, width or spatial * sample.sample_width
        if frames.shape[1] != sample.sample_frames:
            raise ValueError(
                f'video: has {frames.shape[1]} frames, and the network was exported for {sample.sample_frames}'
            )
        options = {'mode': 'bilinear', 'align_corners': False, 'antialias': True}
        resized = torch.nn.functional.interpolate(frames.flatten(0, 1), size=size, **options)
        return 2 * resized.unflatten(0, frames.shape[:2]) - 1

    def _make_source(self, frames, generator, noise):
        """Encodes frames in [-1, 1] and noises their latents: (B, F', C, H', W')."""
        posterior = self.vae.encode(frames.transpose(1, 2)).latent_dist
        latents = posterior.sample(generator) if self.config.sample_posterior else posterior.mode()
        latents = self.vae_scaling_factor_image * latents.transpose(1, 2)
        if noise is None:
            noise = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
        share = self.config.signal_share
        return share * latents + (1 - share**2) ** 0.5 * noise.to(latents)

    def _encode(self, prompt, videos, device):
        prompts = [prompt] * videos if isinstance(prompt, str) else prompt
        prompts = [self.config.prompt_prefix + text for text in prompts]
        length = self.config.text_length
        return self.encode_prompt(prompts, None, False, max_sequence_length=length, device=device)[0]


def _to_tensor(video):
    """Converts a video to a float tensor (B, F, 3, H, W)."""
    if isinstance(video, torch.Tensor):
        return video.float()
    if isinstance(video, (list, tuple)):
        video = np.stack([np.asarray(image.convert('RGB'), np.float32) / 255 for image in video])
    return torch.from_numpy(np.asarray(video, np.float32)).permute(0, 3, 1, 2)[None]
