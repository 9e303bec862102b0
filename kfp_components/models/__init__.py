"""Applications for Ray Serve that answer the Open Inference Protocol (V2) beside their own API. Run inside Ray."""
