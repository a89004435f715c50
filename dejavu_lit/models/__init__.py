"""Models: the LightningModule that trains CLIP, and the zoo that turns any model into an encoder."""
