"""What peftkit uses of other libraries that is not public there, each with what happens without it.

PEFT's is in `peftkit.methods.peft_registry`, and bitsandbytes' re-packed weights are in
`peftkit.backbones.cpu_weight_repacking`.
"""
