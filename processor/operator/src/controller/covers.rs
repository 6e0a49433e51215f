//! Whether an object in the cluster already has all wanted fields. Pure. Additional fields are allowed: the API server adds
//! defaults, omits empty fields and rewrites quantities, and other clients add their own fields.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use serde_json::Value;

/// The path of the first field in which `live` differs from `wanted`, or none if `live` has all of `wanted`. Lists must have the
/// same length.
pub(crate) fn difference(live: &Value, wanted: &Value) -> Option<String> {
    compare(live, wanted, false).map(|path| path.trim_start_matches('.').to_owned())
}

/// Compares two values. `quantities`: the texts are amounts of a resource.
fn compare(live: &Value, wanted: &Value, quantities: bool) -> Option<String> {
    let is_same = match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            return wanted.iter().find_map(|(name, wanted)| {
                let inner = match live.get(name) {
                    Some(live) => compare(live, wanted, quantities || is_of_quantities(name)),
                    None => (!is_empty(wanted)).then(String::new),
                };
                inner.map(|inner| format!(".{name}{inner}"))
            });
        }
        (Value::Array(live), Value::Array(wanted)) if live.len() == wanted.len() => {
            return live.iter().zip(wanted).enumerate().find_map(|(index, (live, wanted))| {
                compare(live, wanted, quantities).map(|inner| format!("[{index}]{inner}"))
            });
        }
        (Value::String(live), Value::String(wanted)) if quantities => {
            live == wanted || quantity(live).is_some_and(|live| quantity(wanted) == Some(live))
        }
        (live, wanted) => live == wanted,
    };
    (!is_same).then(String::new)
}

fn is_of_quantities(name: &str) -> bool {
    matches!(name, "limits" | "requests" | "sizeLimit")
}

/// Whether the API server omits this value. It keeps `false` and 0, because their absence can have another meaning.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// A quantity in billionths, the finest unit of Kubernetes.
/// <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>
fn quantity(text: &str) -> Option<i128> {
    let end =
        text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '-' && c != '+').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let billionths: i128 = match unit {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => 1_000_000_000,
        "k" => 1_000_000_000_000,
        "M" => 1_000_000_000_000_000,
        "G" => 1_000_000_000_000_000_000,
        "T" => 1_000_000_000_000_000_000_000,
        "Ki" => 1_000_000_000 << 10,
        "Mi" => 1_000_000_000 << 20,
        "Gi" => 1_000_000_000 << 30,
        "Ti" => 1_000_000_000 << 40,
        // Greater units and exponents are compared as texts.
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) || fraction.len() > 9 {
        return None;
    }
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let exact = digits.checked_mul(billionths)?;
    (exact % scale == 0).then_some(exact / scale)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn covers(live: &Value, wanted: &Value) -> bool {
        difference(live, wanted).is_none()
    }

    #[test]
    fn the_place_is_named() {
        let wanted = json!({"spec": {"ports": [{"port": 1}, {"port": 2}]}});
        let live = json!({"spec": {"ports": [{"port": 1}, {"port": 3}]}});
        assert_eq!(difference(&live, &wanted).as_deref(), Some("spec.ports[1].port"));
        assert_eq!(difference(&json!({"spec": {}}), &wanted).as_deref(), Some("spec.ports"));
    }

    #[test]
    fn what_others_added_does_not_matter_and_what_they_changed_does() {
        let wanted = json!({"spec": {"ports": [{"port": 1}], "type": "x"}});
        let added = json!({"spec": {"ports": [{"port": 1, "protocol": "TCP"}], "type": "x"}, "status": 1});
        assert!(covers(&added, &wanted));
        for other in [
            json!({"spec": {"ports": [{"port": 2}], "type": "x"}}),
            json!({"spec": {"ports": [{"port": 1}, {"port": 2}], "type": "x"}}),
            json!({"spec": {"ports": [{"port": 1}]}}),
            json!({}),
        ] {
            assert!(!covers(&other, &wanted), "{other}");
        }
    }

    #[test]
    fn what_is_empty_may_be_left_out_and_what_is_false_may_not() {
        assert!(covers(&json!({}), &json!({"tolerations": [], "affinity": {}, "value": ""})));
        assert!(!covers(&json!({}), &json!({"automountServiceAccountToken": false})));
    }

    #[test]
    fn a_quantity_is_the_same_however_it_is_written() {
        let limits =
            |cpu: &str, memory: &str| json!({"resources": {"limits": {"cpu": cpu, "memory": memory}}});
        for (cpu, memory) in
            [("1", "1Gi"), ("1000m", "1024Mi"), ("1.0", "1048576Ki"), ("1000000u", "1073741824")]
        {
            assert!(covers(&limits("1", "1Gi"), &limits(cpu, memory)), "{cpu} {memory}");
        }
        for (cpu, memory) in [("2", "1Gi"), ("1", "1G"), ("1m", "1Gi"), ("x", "1Gi"), ("", "1Gi")] {
            assert!(!covers(&limits("1", "1Gi"), &limits(cpu, memory)), "{cpu} {memory}");
        }
        assert!(!covers(&json!({"label": "1"}), &json!({"label": "1000m"})), "no quantity");
    }
}
