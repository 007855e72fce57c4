/// What a data thread is told of its further life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Course {
    /// Take connections and serve them.
    #[default]
    Serve,
    /// Another process has the listening sockets now: take no more connections. Those that are open have their
    /// next request answered, and are closed behind it, or when they are idle for as long as they may be anyway:
    /// to close one now could cross a request on its way. Upgraded connections stay for as long as they like and
    /// their backend is what it was.
    Retire,
    /// End: take no more connections, close those that are idle, and what is left when the time for that is over
    /// (`ProxySettings::drain`).
    Stop,
}
