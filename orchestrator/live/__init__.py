"""The decisions run for real: controller on Ray, gateway on gRPC and HTTP."""
