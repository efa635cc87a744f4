//! The control-plane client: ADS streams, subscriptions, ACK and NACK.
