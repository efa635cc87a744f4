//! Identity and xDS for a foreign proxy on Istio's UNIX sockets.
