//! Names of others: what the configuration says of them, and how asking for them is shown.

use std::sync::Arc;

use arc_swap::ArcSwap;
use proximity_admin::{
    AnsweredRecord, DnsAnswerView, MetricKind, MetricsText, Problem, UpstreamView, rfc3339,
};
use proximity_config::Config;
use proximity_dns::{
    DnsSettings, ForwardStatus, Forwarder, LookedUp, PublishedPolicy, TtlBounds, UpstreamStatus,
};
use proximity_table::{Name, Timestamp, World};

use crate::clock;

/// The forwarder's settings in a configuration.
pub fn settings(config: &Config) -> DnsSettings {
    let dns = &config.dns;
    DnsSettings {
        upstream: dns.upstream.clone(),
        forward: dns.forward.clone(),
        upstream_ca: dns.upstream_ca.clone(),
        cache_size: dns.cache_size.into(),
        ttl: TtlBounds { min: dns.cache_min_ttl, max: dns.cache_max_ttl, negative_max: dns.negative_max_ttl },
        serve_stale: dns.serve_stale,
        prefetch: dns.prefetch,
        rebind_protection: dns.rebind_protection,
        rebind_exempt: dns.rebind_exempt.clone(),
        own_networks: config.intent.networks.iter().map(|network| network.address).collect(),
    }
}

/// Asks for a name as a client on this host would.
pub async fn ask(
    world: Arc<ArcSwap<World>>,
    forwarder: Arc<ArcSwap<Forwarder>>,
    policy: PublishedPolicy,
    name: Name,
    rtype: String,
) -> Result<DnsAnswerView, Problem> {
    let asked = proximity_dns::look_up(world, forwarder, policy, clock::now, &name, &rtype).await;
    let lookup = asked.map_err(Problem::explained)?;
    let record = |record: LookedUp| AnsweredRecord {
        name: record.name,
        ttl: record.ttl,
        rtype: record.rtype,
        value: record.value,
    };
    Ok(DnsAnswerView {
        name: name.to_string(),
        rtype: rtype.to_ascii_uppercase(),
        rcode: lookup.rcode,
        flags: lookup.flags.into_iter().map(str::to_owned).collect(),
        answers: lookup.answers.into_iter().map(record).collect(),
        authority: lookup.authority.into_iter().map(record).collect(),
        origin: lookup.origin.to_owned(),
        error: lookup.error,
        microseconds: u64::try_from(lookup.took.as_micros()).unwrap_or(u64::MAX),
    })
}

/// An upstream as the API shows it.
pub fn upstream_view(status: UpstreamStatus) -> UpstreamView {
    let moment = |seconds: Option<u64>| seconds.and_then(|seconds| rfc3339(Timestamp(seconds)));
    UpstreamView {
        upstream: status.upstream,
        domain: status.domain,
        up: status.is_up,
        answers: status.answers,
        failures: status.failures,
        latency_us: status.latency.and_then(|latency| u64::try_from(latency.as_micros()).ok()),
        last_answer: moment(status.last_answer),
        last_failure: moment(status.last_failure),
    }
}

/// What forwarding adds to the page of figures.
pub fn figures(page: &mut MetricsText, status: &ForwardStatus) {
    page.single(
        "proximity_dns_cache_entries",
        MetricKind::Gauge,
        "Answers of upstreams kept.",
        status.cached,
    );
    let mut single = |name, help, value| page.single(name, MetricKind::Counter, help, value);
    let help = "Answers given out after their time because upstreams failed.";
    single("proximity_dns_stale_answers_total", help, status.stale);
    let help = "Popular names asked for again before their time was over.";
    single("proximity_dns_prefetches_total", help, status.prefetched);
    let help = "Questions that waited for the answer to the same question of another client.";
    single("proximity_dns_joined_total", help, status.joined);
    let help = "Answers kept from clients because they lead into a private network.";
    single("proximity_dns_rebinding_total", help, status.rebinding);
    let label = |upstream: &UpstreamStatus| match &upstream.domain {
        Some(domain) => format!("{} for {domain}", upstream.upstream),
        None => upstream.upstream.clone(),
    };
    let labels: Vec<String> = status.upstreams.iter().map(label).collect();
    let mut family = |name, kind, help, value: &dyn Fn(&UpstreamStatus) -> f64| {
        let mut family = page.family(name, kind, help);
        for (upstream, label) in status.upstreams.iter().zip(&labels) {
            family.sample(&[("upstream", label)], value(upstream));
        }
    };
    let help = "Whether an upstream is asked before those that fail.";
    family("proximity_dns_upstream_up", MetricKind::Gauge, help, &|up| f64::from(u8::from(up.is_up)));
    let help = "Answers of an upstream.";
    family("proximity_dns_upstream_answers_total", MetricKind::Counter, help, &|up| up.answers as f64);
    let help = "Questions that an upstream gave no usable answer to.";
    family("proximity_dns_upstream_errors_total", MetricKind::Counter, help, &|up| up.failures as f64);
    let help = "How long the answers of an upstream took together.";
    family("proximity_dns_upstream_seconds_total", MetricKind::Counter, help, &|up| up.total.as_secs_f64());
}
