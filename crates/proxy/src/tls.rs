use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use proximity_table::BackendTls;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use crate::authority::Authority;
use crate::health::Distrust;
use crate::kept_authorities::KeptAuthorities;

/// TLS towards backends. Each kind of trust is made ready when it is first asked for.
#[derive(Default)]
pub struct Tls {
    authorities: Arc<KeptAuthorities>,
    any: OnceLock<TlsConnector>,
    public: OnceLock<TlsConnector>,
}

/// Why a handshake came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTls {
    /// It failed, or there was none.
    Handshake,
    /// The backend's certificate is not good.
    Untrusted(Distrust),
}

/// Takes whatever certificate a backend shows: apps at home sign their own. What is sent is hidden from those who
/// listen, and nothing more; `tls_verify` asks for more.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

/// Trusts an authority, and the very certificates in its file.
#[derive(Debug)]
struct Named {
    signed: Arc<WebPkiServerVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

impl Tls {
    /// TLS that trusts the files of these authorities where it is told to.
    pub fn new(authorities: Arc<KeptAuthorities>) -> Tls {
        Tls { authorities, ..Tls::default() }
    }

    /// TLS on a fresh connection. `host` is the backend's address, for which it is asked when it has no name that
    /// could be asked for.
    pub async fn connect(
        &self,
        stream: TcpStream,
        how: &BackendTls,
        host: IpAddr,
    ) -> Result<TlsStream<TcpStream>, NoTls> {
        let connector = match &how.ca {
            _ if !how.verify => self.any.get_or_init(any).clone(),
            None => self.public.get_or_init(public).clone(),
            Some(path) => {
                let ready = self.authorities.ready(path, private).await;
                ready.ok_or(NoTls::Untrusted(Distrust::NoAuthority))?
            }
        };
        let name = how.server_name.as_ref().and_then(|name| ServerName::try_from(name.clone()).ok());
        let name = name.unwrap_or_else(|| ServerName::from(host));
        connector.connect(name, stream).await.map_err(|error| NoTls::of(&error))
    }
}

impl NoTls {
    fn of(error: &io::Error) -> NoTls {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        let Some(Error::InvalidCertificate(wrong)) = inner else { return NoTls::Handshake };
        use CertificateError::{
            Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
            NotValidYetContext, UnknownIssuer,
        };
        NoTls::Untrusted(match wrong {
            UnknownIssuer => Distrust::Issuer,
            NotValidForNameContext { presented, .. } if presented.is_empty() => Distrust::Nameless,
            NotValidForName | NotValidForNameContext { .. } => Distrust::Name,
            Expired | ExpiredContext { .. } => Distrust::Expired,
            NotValidYet | NotValidYetContext { .. } => Distrust::NotYet,
            _ => Distrust::Other,
        })
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

fn any() -> TlsConnector {
    connector(|provider| Arc::new(AnyCertificate(provider)))
}

fn public() -> TlsConnector {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    connector(|provider| signed_by(roots, provider))
}

fn private(authority: Authority) -> TlsConnector {
    let Authority { roots, certificates } = authority;
    connector(|provider| Arc::new(Named { signed: signed_by(roots, provider), certificates }))
}

fn signed_by(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Arc<WebPkiServerVerifier> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    verifier.expect("there are roots, and no revocation lists that could be wrong")
}

fn connector<V: ServerCertVerifier + 'static>(
    verifier: impl FnOnce(Arc<CryptoProvider>) -> Arc<V>,
) -> TlsConnector {
    let provider = Arc::new(ring::default_provider());
    // The verifiers are rustls's own but for what is said above each.
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider knows the default versions")
        .dangerous()
        .with_custom_certificate_verifier(verifier(provider))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.signed.verify_server_cert(certificate, others, name, stapled, now);
        // Most self-signed certificates say of themselves that they are authorities, which those of servers may not.
        // Whoever names the very certificate means it nevertheless. That it is in force was looked at before.
        let is_named = || self.certificates.iter().any(|named| named == certificate);
        match verified {
            Err(Error::InvalidCertificate(CertificateError::Other(_))) if is_named() => {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
