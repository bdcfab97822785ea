"""Many adapters and heads on one frozen encoder, served: a queue, mixed batches, the protocol of existing clients."""
