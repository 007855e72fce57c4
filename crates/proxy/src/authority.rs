use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

use thiserror::Error;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

/// Longest file of certificates, in octets. All authorities that browsers know fit into a quarter of it.
const LONGEST: u64 = 1 << 20;

/// The certificates of a file that `tls_ca` names.
#[derive(Debug)]
pub struct Authority {
    /// Those that may have signed a backend's certificate.
    pub roots: RootCertStore,
    /// All of them as they are: one of them may be the backend's own.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// What tells that a file is no longer the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    file: (u64, u64),
    length: u64,
    changed: (i64, i64),
}

/// Why a file of certificates cannot be used.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// The file system says so.
    #[error("`{0}` cannot be read ({1}): name a file that is there and that the appliance may read")]
    Unreadable(String, io::Error),
    /// A directory, or something that could keep whoever reads it waiting.
    #[error("`{0}` is not a file: name a PEM file with the certificate of the authority")]
    NotAFile(String),
    /// More than is read.
    #[error("`{0}` is longer than 1 MiB: name a PEM file with the certificate of the authority alone")]
    TooLong(String),
    /// No PEM, or PEM without certificates.
    #[error("`{0}` has no certificate: name a PEM file with `-----BEGIN CERTIFICATE-----` in it")]
    Empty(String),
    /// What looks like a certificate is none.
    #[error("certificate {1} in `{0}` is broken: export the certificate of the authority again, as PEM")]
    Broken(String, usize),
}

impl Authority {
    /// Reads a file on the thread that asks. Whoever may not wait for a disk asks by [`crate::KeptAuthorities`].
    pub fn read(path: &str) -> Result<Authority, AuthorityError> {
        regular(path)?;
        let unreadable = |error| AuthorityError::Unreadable(path.to_owned(), error);
        let mut text = Vec::new();
        File::open(path)
            .and_then(|file| file.take(LONGEST + 1).read_to_end(&mut text))
            .map_err(unreadable)?;
        if text.len() as u64 > LONGEST {
            return Err(AuthorityError::TooLong(path.to_owned()));
        }
        Authority::parse(path, &text)
    }

    fn parse(path: &str, text: &[u8]) -> Result<Authority, AuthorityError> {
        let (mut roots, mut certificates) = (RootCertStore::empty(), Vec::new());
        for (at, certificate) in CertificateDer::pem_slice_iter(text).enumerate() {
            let broken = || AuthorityError::Broken(path.to_owned(), at + 1);
            let certificate = certificate.map_err(|_| broken())?;
            roots.add(certificate.clone()).map_err(|_| broken())?;
            certificates.push(certificate);
        }
        match certificates.is_empty() {
            true => Err(AuthorityError::Empty(path.to_owned())),
            false => Ok(Authority { roots, certificates }),
        }
    }
}

impl Stamp {
    /// The present stamp of a file.
    pub fn of(path: &str) -> Result<Stamp, AuthorityError> {
        let data = regular(path)?;
        Ok(Stamp {
            file: (data.dev(), data.ino()),
            length: data.len(),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }
}

fn regular(path: &str) -> Result<Metadata, AuthorityError> {
    let data = std::fs::metadata(path).map_err(|error| AuthorityError::Unreadable(path.to_owned(), error))?;
    if data.is_file() { Ok(data) } else { Err(AuthorityError::NotAFile(path.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &[u8] = include_bytes!("../tests/proxy/certificates/self_signed.pem");

    #[test]
    fn certificates_are_found_among_other_things() {
        let twice = [b"# the authority\n", PEM, PEM].concat();
        assert_eq!(Authority::parse("x", &twice).unwrap().certificates.len(), 2);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let says = |text: &[u8]| Authority::parse("/ca.pem", text).unwrap_err().to_string();
        assert!(says(b"").contains("has no certificate"));
        assert!(
            says(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
                .contains("has no certificate")
        );
        let noise = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(says(noise.as_bytes()).starts_with("certificate 1 in `/ca.pem` is broken"));
        assert!(says(b"-----BEGIN CERTIFICATE-----\nAAAA\n").contains("broken"), "cut off");
        let second = [PEM, noise.as_bytes()].concat();
        assert!(says(&second).starts_with("certificate 2"));
        for (path, wrong) in
            [("/nowhere/ca.pem", "cannot be read"), ("/tmp", "not a file"), ("/dev/zero", "not a file")]
        {
            let error = Authority::read(path).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains(path), "{error}");
        }
    }
}
