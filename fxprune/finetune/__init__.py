"""Training a pruned model beside its dense original: the loss, the loop, and checkpoints to go on from."""
