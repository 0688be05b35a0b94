//! The API of llava-operator: the kinds that users write and read, and every
//! name that operator, router, worker and chart agree on.

#![expect(
    unreachable_pub,
    reason = "the derive of KubeSchema makes a public struct inside a function"
)]

pub mod autoscaling;
pub mod condition;
pub mod definition;
pub mod deployment;
pub mod drain;
pub mod duration;
pub mod engine;
pub mod model;
pub mod name;
pub mod pod;
pub mod resources;
pub mod rollout;
pub mod routing;
pub mod source;
pub mod worker;

pub use deployment::{LlavaDeployment, LlavaDeploymentSpec, LlavaDeploymentStatus};
pub use worker::{LlavaWorker, LlavaWorkerSpec, LlavaWorkerStatus};
