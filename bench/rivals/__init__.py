"""What the benches measure longlook against; no option of the product."""
