"""Events and their format, the ring, the pump that drains it: whoever wants batches subscribes."""
