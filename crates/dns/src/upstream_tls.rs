//! What certificate an upstream must show.

use std::path::Path;
use std::sync::Arc;

use thiserror::Error;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// How upstreams are spoken to over TLS.
#[derive(Clone)]
pub(crate) struct TlsClient(ClientConfig);

/// Why a file of authorities cannot be used.
#[derive(Debug, Error)]
pub enum AuthoritiesError {
    /// It cannot be read, or what is in it is no certificate.
    #[error("{path}: {why}; name a PEM file of certificates")]
    Unreadable {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// There is nothing in it.
    #[error("{0} holds no certificate; name a PEM file of certificates")]
    Empty(String),
    /// TLS itself cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(tokio_rustls::rustls::Error),
}

impl TlsClient {
    /// The authorities that browsers trust, and those of a PEM file.
    pub fn new(more: Option<&Path>) -> Result<TlsClient, AuthoritiesError> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(path) = more {
            let wrong =
                |error: String| AuthoritiesError::Unreadable { path: path.display().to_string(), why: error };
            let mut count = 0;
            for certificate in
                CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?
            {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
                count += 1;
            }
            if count == 0 {
                return Err(AuthoritiesError::Empty(path.display().to_string()));
            }
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(AuthoritiesError::Tls)?;
        Ok(TlsClient(builder.with_root_certificates(roots).with_no_client_auth()))
    }

    pub fn config(&self) -> ClientConfig {
        self.0.clone()
    }
}
