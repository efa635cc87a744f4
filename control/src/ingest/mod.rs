//! From files to a [`World`](crate::model::World): reading, checking and watching configuration.
