//! `proximity hash-password`: the hash of a password for `auth.users`.

use std::io::{self, BufRead, IsTerminal, Write};

use nix::sys::termios::{self, LocalFlags, SetArg};
use serde_json::json;

use crate::commands::Done;
use crate::salt::random;
use crate::say;

/// Longest password in octets: what a browser sends has name and password in one field of at most 1024.
const LONGEST: usize = 512;

pub fn run(json: bool) -> Done {
    let stdin = io::stdin();
    let password = match stdin.is_terminal() {
        true => asked_twice()?,
        false => line(&mut stdin.lock())?,
    };
    let hash = proximity_proxy::hash_password(password.as_bytes(), random());
    if json {
        say!("{}", json!({ "hash": hash }))
    } else {
        say!("{hash}")
    }
    Ok(())
}

/// Twice, as nobody sees what is typed.
fn asked_twice() -> Result<String, String> {
    let _silence = Silence::begin().map_err(|error| format!("the terminal cannot be silenced: {error}"))?;
    let password = prompt("Password: ")?;
    match prompt("The same again: ")? == password {
        true => Ok(password),
        false => Err("the two passwords differ: type the same one twice".to_owned()),
    }
}

fn prompt(text: &str) -> Result<String, String> {
    let mut terminal = io::stderr();
    // Whoever cannot see the question is asked all the same.
    let _ = write!(terminal, "{text}").and_then(|()| terminal.flush());
    let typed = line(&mut io::stdin().lock());
    let _ = writeln!(terminal);
    typed
}

/// The password in the first line, which is the only one.
fn line(from: &mut impl BufRead) -> Result<String, String> {
    let mut text = String::new();
    let most = LONGEST as u64 + 2;
    io::Read::take(from, most)
        .read_line(&mut text)
        .map_err(|error| format!("the password cannot be read: {error}: type one line of UTF-8"))?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    match password.len() {
        0 => Err("there is no password: type one, or give it on standard input".to_owned()),
        length if length > LONGEST => Err(format!("the password is too long: use at most {LONGEST} octets")),
        _ if password.contains(char::is_control) => {
            Err("the password has a control character, which browsers do not send: leave it out".to_owned())
        }
        _ => Ok(password.to_owned()),
    }
}

/// The terminal shows nothing that is typed, until this is dropped.
struct Silence(termios::Termios);

impl Silence {
    fn begin() -> nix::Result<Silence> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &silent)?;
        Ok(Silence(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_one_line() {
        let read = |text: &str| line(&mut text.as_bytes());
        assert_eq!(read("secret\n").as_deref(), Ok("secret"));
        assert_eq!(read("two words \r\n").as_deref(), Ok("two words "));
        assert_eq!(read("no end").as_deref(), Ok("no end"));
        assert_eq!(read(&"x".repeat(LONGEST)).map(|text| text.len()), Ok(LONGEST));
        for (text, words) in [("", "no password"), ("\nsecret\n", "no password"), ("a\tb\n", "control")] {
            assert!(read(text).unwrap_err().contains(words), "{text:?}");
        }
        assert!(read(&"x".repeat(LONGEST + 1)).unwrap_err().contains("too long"));
        assert!(line(&mut &b"\xff\n"[..]).unwrap_err().contains("UTF-8"));
    }
}
