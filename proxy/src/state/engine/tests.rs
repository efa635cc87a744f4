//! The engine over real workers' channels.
