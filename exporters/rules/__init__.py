"""The TensorRT rules, a small function each; `exporters.trt_rules` is their face."""
