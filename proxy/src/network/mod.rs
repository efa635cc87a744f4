//! Network filters: what runs on a connection's bytes (rbac, metadata exchange, tcp_proxy).
