//! A table without Kubernetes: the workers that the command line names. Their
//! models are asked from them until all have answered, and again each minute.

use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use http::{HeaderValue, Uri};
use serde::Deserialize;
use tokio::sync::watch;

use crate::table::record::{ModelRecord, Table, WorkerRecord};
use crate::upstream::ask::{AskError, ask};
use crate::upstream::link::Links;

const RETRY: Duration = Duration::from_secs(1);
const REFRESH: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(5);

/// A `--worker` that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("--worker `{url}`: write it like http://host:8000")]
pub struct InvalidWorker {
    url: String,
}

/// The workers' addresses.
pub(crate) fn parse(urls: &[String]) -> Result<Vec<Authority>, InvalidWorker> {
    let parse = |url: &String| {
        let invalid = || InvalidWorker { url: url.clone() };
        let parsed: Uri = url.parse().map_err(|_| invalid())?;
        let plain = parsed.scheme_str() == Some("http") && matches!(parsed.path(), "" | "/");
        parsed
            .into_parts()
            .authority
            .filter(|_| plain)
            .ok_or_else(invalid)
    };
    urls.iter().map(parse).collect()
}

/// The table where every worker serves `model`.
pub(crate) fn of_one_model(workers: &[Authority], model: &str, now: i64) -> Table {
    let answers: Vec<_> = workers
        .iter()
        .map(|worker| (worker.clone(), vec![model.to_owned()]))
        .collect();
    table(&answers, now)
}

/// Asks the workers for their models and publishes what they say, for ever.
pub(crate) async fn ask_for_models(
    workers: Vec<Authority>,
    key: Option<HeaderValue>,
    publish: watch::Sender<Table>,
    created: i64,
) {
    let links: Vec<Arc<Links>> = workers
        .iter()
        .map(|worker| Arc::new(Links::new(worker, key.clone())))
        .collect();
    let mut known: Vec<Option<Vec<String>>> = vec![None; workers.len()];
    loop {
        let answers = futures::future::join_all(links.iter().map(models_of)).await;
        for ((known, answer), worker) in known.iter_mut().zip(answers).zip(&workers) {
            match answer {
                Ok(names) => *known = Some(names),
                Err(error) if known.is_none() => {
                    tracing::info!(%worker, %error, "waiting for the worker to tell its models");
                }
                Err(_) => {}
            }
        }
        let answered: Vec<_> = workers
            .iter()
            .zip(&known)
            .filter_map(|(worker, names)| Some((worker.clone(), names.clone()?)))
            .collect();
        let table = table(&answered, created);
        publish.send_if_modified(|old| {
            let changed = *old != table;
            *old = table;
            changed
        });
        let all = answered.len() == workers.len();
        tokio::time::sleep(if all { REFRESH } else { RETRY }).await;
    }
}

fn table(answers: &[(Authority, Vec<String>)], created: i64) -> Table {
    let mut table = Table {
        synced: !answers.is_empty(),
        routers: 1,
        ..Table::default()
    };
    for (authority, names) in answers {
        let Some(model) = names.first() else {
            continue;
        };
        let record = table.models.entry(model.clone()).or_insert(ModelRecord {
            names: Vec::new(),
            created,
            dispatch: None,
        });
        for name in names {
            if !record.names.contains(name) {
                record.names.push(name.clone());
            }
        }
        let worker = WorkerRecord {
            model: model.clone(),
            name: authority.to_string(),
            authority: authority.clone(),
            lease: None,
        };
        table.workers.insert(authority.to_string(), worker);
    }
    table
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

async fn models_of(links: &Arc<Links>) -> Result<Vec<String>, AskError> {
    let (_, body) = ask(links, "/v1/models", PATIENCE).await?;
    let models: Models = serde_json::from_slice(&body)?;
    Ok(models.data.into_iter().map(|model| model.id).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_of_the_same_first_model_share_a_pool() {
        let at = |port: u16| Authority::try_from(format!("h:{port}")).unwrap();
        let names = |list: &[&str]| list.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        let table = table(
            &[
                (at(1), names(&["a", "x"])),
                (at(2), names(&["a"])),
                (at(3), names(&["b"])),
                (at(4), vec![]),
            ],
            0,
        );
        assert_eq!(table.models["a"].names, ["a", "x"]);
        assert_eq!(table.workers.len(), 3);
        assert_eq!(table.workers["h:3"].model, "b");
    }

    #[test]
    fn a_worker_is_a_plain_http_url() {
        for url in ["http://a:1", "http://1.2.3.4:8000/"] {
            parse(&[url.to_owned()]).unwrap();
        }
        for url in ["a:1", "https://a:1", "http://a:1/path", ""] {
            parse(&[url.to_owned()]).unwrap_err();
        }
    }
}
