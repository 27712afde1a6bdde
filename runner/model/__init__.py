"""What the model computes, from file facts (``spec``) to logits (``transformer``)."""
