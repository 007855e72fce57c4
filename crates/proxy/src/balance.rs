use std::collections::HashMap;
use std::sync::Arc;

/// Vhosts with several backends whose turn is remembered; more start over.
const REMEMBERED: usize = 4096;

/// Whose turn it is: round robin for each vhost that has several backends.
#[derive(Debug, Default)]
pub struct Turns {
    of_app: HashMap<Arc<str>, usize>,
}

impl Turns {
    /// Index of the backend that gets the next request of `app`, out of `usable`.
    pub fn next(&mut self, app: &Arc<str>, usable: usize) -> usize {
        if usable <= 1 {
            return 0;
        }
        if let Some(turn) = self.of_app.get_mut(app) {
            *turn = turn.wrapping_add(1);
            return *turn % usable;
        }
        if self.of_app.len() >= REMEMBERED {
            self.of_app.clear();
        }
        self.of_app.insert(app.clone(), 0);
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_take_turns_for_each_vhost_apart() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut turns = Turns::default();
        let seen: Vec<usize> = [&a, &b, &a, &b, &a].into_iter().map(|app| turns.next(app, 3)).collect();
        assert_eq!(seen, [0, 0, 1, 1, 2]);
        assert_eq!(turns.next(&a, 2), 1);
        assert_eq!(turns.next(&a, 1), 0);
    }

    #[test]
    fn memory_is_bounded() {
        let mut turns = Turns::default();
        for app in 0..3 * REMEMBERED {
            turns.next(&app.to_string().into(), 2);
        }
        assert!(turns.of_app.len() <= REMEMBERED);
    }
}
