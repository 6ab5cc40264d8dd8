"""V-JEPA 2 world models: encoder, mask-denoising pretraining, action-conditioned predictor, checkpoints."""
