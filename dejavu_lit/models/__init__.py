"""Models: any model by name as an encoder of images and captions, and the model to train."""
