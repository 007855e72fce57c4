use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use proximity_table::{Generation, Route};

use crate::mixing::fnv;
use crate::site::Site;

/// Seconds after which a site that nobody visits is forgotten.
const IDLE: u32 = 60;
/// Hosts that are found by the way they are written: as many as there are names, within these bounds. Powers of two.
const FEWEST_HOSTS: usize = 512;
const MOST_HOSTS: usize = 16 * 1024;

/// What a data thread has ready for the routes that are asked for.
pub struct Sites {
    by_route: RefCell<HashMap<*const Route, (Rc<Site>, u32)>>,
    /// Each at a place of its own, or in the place of another one: looking up a name, among ten thousand or not, and
    /// the site of its route costs several times what this does.
    by_host: RefCell<Box<[Option<Known>]>>,
}

/// A host that was asked for a moment ago.
struct Known {
    /// The authority as it was written.
    written: Box<[u8]>,
    /// The world in which it was looked up.
    generation: Generation,
    site: Rc<Site>,
}

impl Default for Sites {
    fn default() -> Sites {
        Sites { by_route: RefCell::default(), by_host: RefCell::new(places(0)) }
    }
}

impl Sites {
    /// The site of a host as it was written, if it was looked up in this world a moment ago.
    pub fn of_host(&self, written: &[u8], generation: Generation) -> Option<Rc<Site>> {
        match &self.by_host.borrow()[self.place(written)] {
            Some(known) if known.generation == generation && *known.written == *written => {
                Some(known.site.clone())
            }
            _ => None,
        }
    }

    /// Notes what [`Sites::of_host`] is to find.
    pub fn note(&self, written: &[u8], generation: Generation, site: &Rc<Site>) {
        let known = Known { written: written.into(), generation, site: site.clone() };
        let place = self.place(written);
        self.by_host.borrow_mut()[place] = Some(known);
    }

    fn place(&self, written: &[u8]) -> usize {
        fnv(written) as usize & (self.by_host.borrow().len() - 1)
    }

    /// The site of a route, made if there is none. `now` is in seconds.
    pub fn of_route(&self, route: Arc<Route>, now: u32, make: impl FnOnce(Arc<Route>) -> Site) -> Rc<Site> {
        let mut sites = self.by_route.borrow_mut();
        let (site, used) = sites.entry(Arc::as_ptr(&route)).or_insert_with(|| (Rc::new(make(route)), now));
        *used = now;
        site.clone()
    }

    /// Forgets the sites that nobody has visited for a while. One that is kept keeps its route, so that no other
    /// route can have the same address in memory. `names` is how many the world has.
    pub fn forget(&self, now: u32, names: usize) {
        *self.by_host.borrow_mut() = places(names);
        self.by_route.borrow_mut().retain(|_, (site, used)| {
            if Rc::strong_count(site) > 1 {
                *used = now;
            }
            now.wrapping_sub(*used) < IDLE
        });
    }
}

fn places(names: usize) -> Box<[Option<Known>]> {
    let count = names.clamp(FEWEST_HOSTS, MOST_HOSTS).next_power_of_two();
    std::iter::repeat_with(|| None).take(count).collect()
}
