"""What `common.samplers` offers by name: each sampler as a function from a plan to a table."""
