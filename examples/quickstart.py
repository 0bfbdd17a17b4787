"""Prune a vision transformer in half and prove that the result computes the right function."""

import timm

import fxprune

model = timm.create_model("vit_tiny_patch16_224").eval()  # pretrained=True for real weights
pruned = fxprune.prune(model, ratio=0.5)
certificate = fxprune.verify(model, pruned)

before, after = (sum(p.numel() for p in m.parameters()) for m in (model, pruned))
print(f"{before:,} -> {after:,} parameters, certified to {float(certificate):.1e}")
