/// Placeholder until merged.
#[derive(Debug, Default)]
pub struct HeaderEdits;
impl HeaderEdits {
    pub fn is_removed(&self, _name: &[u8]) -> bool {
        false
    }
    pub fn lines(&self) -> &[u8] {
        b""
    }
}
