use std::sync::Arc;

use imbl::OrdMap;
use proximity_table::{Name, Owned, Record, RecordData, RecordType, Source};

use crate::section::Section;

pub fn records(dns: &mut Section<'_>, domain: &Name) -> OrdMap<(Name, RecordType), Owned<Vec<Record>>> {
    let mut sets: OrdMap<(Name, RecordType), Owned<Vec<Record>>> = OrdMap::new();
    for mut table in dns.tables("record") {
        let name: Option<String> = table.required("name", "printer");
        let rtype: Option<String> = table.required("type", "A");
        let value: Option<String> = table.required("value", "10.20.0.50");
        let ttl = table.duration("ttl", 300, 0);
        if let (Some(name), Some(rtype), Some(value)) = (name, rtype, value) {
            let name = Name::owner(&name, domain).map_err(|error| table.explain("name", &error.to_string()));
            let data = RecordData::parse(&rtype, &value, domain).map_err(|error| {
                let key =
                    if matches!(error, proximity_table::RecordError::Type(_)) { "type" } else { "value" };
                table.explain(key, &error.to_string());
            });
            if let (Ok(name), Ok(data)) = (name, data) {
                let (_, set) =
                    sets.entry((name.clone(), data.rtype())).or_insert((Source::Config, Arc::default()));
                Arc::make_mut(set).push(Record { name, data, ttl });
            }
        }
        table.finish();
    }
    sets
}
