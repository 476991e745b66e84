"""Everything that knows Flower: roster, grid guard, round loop, callbacks, checkpoints."""
