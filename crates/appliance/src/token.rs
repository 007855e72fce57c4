use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use proximity_admin::Token;

/// Name of the file below `state_dir`.
pub const FILE_NAME: &str = "admin.token";

/// The admin token: the one in the file, or a new one that is put there for its owner alone.
pub fn load_or_make(directory: &Path) -> io::Result<Token> {
    let path = directory.join(FILE_NAME);
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().len() >= 16 => Ok(Token::new(text.trim())),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} is shorter than 16 characters: delete it to have a new one made", path.display()),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut secret = [0; 32];
            getrandom::fill(&mut secret).map_err(|error| io::Error::other(error.to_string()))?;
            let text: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
            // Whole or not at all: half a token would stop every later start.
            let fresh = path.with_extension("new");
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            writeln!(file, "{text}")?;
            file.sync_all()?;
            std::fs::rename(&fresh, &path)?;
            Ok(Token::new(&text))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_token_is_made_once_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        load_or_make(directory.path()).unwrap();
        let first = std::fs::read_to_string(&path).unwrap();
        load_or_make(directory.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), first);
        assert_eq!(first.trim().len(), 64);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "short").unwrap();
        assert!(load_or_make(directory.path()).is_err());
    }
}
