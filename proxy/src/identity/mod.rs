//! TLS contexts from secrets, SPIFFE checks, and the workload's own certificate.
