//! Downstream connections: sockets, listener filters, sniffing, filter chain match, drain.
