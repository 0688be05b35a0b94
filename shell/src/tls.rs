//! One TLS provider for the whole process. rustls panics at the first use when
//! two providers are linked and none is chosen.

/// Chooses `ring`. Call first in every `main`, and in tests that dial TLS.
pub fn install_provider() {
    // An error says that a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
