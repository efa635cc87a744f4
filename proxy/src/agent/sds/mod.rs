//! SDS for the foreign proxy: Istio's names on Istio's socket.
//!
//! [`secret`] knows the names and what they stand for, [`watch`] the rules by which a stream's requests are answered, [`serve`]
//! moves the messages.

mod secret;
mod serve;
mod watch;

#[cfg(test)]
mod tests;

pub(super) use serve::SecretService;
