//! Where a trial's activations come from, with the settings that only this source has.

use super::{DataConfig, ModelConfig};
use serde::{Deserialize, Serialize};

/// Where activations come from. The settings of another source are not part of the configuration, so they
/// cannot make two equal trials look different.
///
/// Written as `[activations]`, `[model]` and `[data]`; `[activations]` is left out for a language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "SourceSections", into = "SourceSections")]
pub enum ActivationSource {
    /// A language model that reads text.
    Model {
        /// The language model and the place in it.
        model: ModelConfig,
        /// The text and how it becomes token sequences.
        data: DataConfig,
    },
    /// Superposition data whose features are known.
    Toy(ToyConfig),
    /// Activations that somebody else computed.
    Files(FilesConfig),
}

impl ActivationSource {
    /// The word of `activations.source`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Model { .. } => "model",
            Self::Toy(_) => "toy",
            Self::Files(_) => "files",
        }
    }

    /// Model and data, where activations come from a model.
    pub fn model(&self) -> Option<(&ModelConfig, &DataConfig)> {
        match self {
            Self::Model { model, data } => Some((model, data)),
            Self::Toy(_) | Self::Files(_) => None,
        }
    }
}

/// `[activations]` with `source = "toy"`: rows that are sums of known directions.
///
/// A row is `sum over active features i of m_i norm_i f_i + noise`, all of it a function of these settings and
/// the row's number alone:
///
/// - f_i are random unit vectors in `d_in` dimensions; norm_i = i^-`norm_power`, i counted from 1.
/// - Feature i is active with probability p_i, proportional to i^-`probability_power`; the p_i sum to
///   `mean_active`.
/// - Features come in groups of `group_size` neighbours. Each feature is active when a uniform number falls
///   below p_i; with probability sqrt(`correlation`) that number is its group's, else its own. So marginals
///   are exact, and two features of a group with equal p_i have this correlation.
/// - m_i is uniform in `[1 - spread, 1 + spread]`; the noise has standard deviation `noise` in each dimension.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToyConfig {
    /// True features.
    pub n_features: usize,
    /// Activation width.
    pub d_in: usize,
    /// Features active in a row, on average.
    pub mean_active: f64,
    /// Exponent of the power law of firing probabilities; 0 makes them equal.
    pub probability_power: f64,
    /// Exponent of the power law of feature norms; 0 makes them 1.
    pub norm_power: f64,
    /// How far the strength of an active feature departs from 1, at most.
    pub spread: f64,
    /// Correlation of two features of one group.
    pub correlation: f64,
    /// Features in a group.
    pub group_size: usize,
    /// Standard deviation of the noise in each dimension.
    pub noise: f64,
    /// Seed of features and rows.
    pub seed: u64,
    /// Held-out rows.
    pub eval_rows: usize,
}

impl ToyConfig {
    /// p_i of every feature. One of them may come out above 1, which sweep files are refused for.
    pub fn probabilities(&self) -> Vec<f64> {
        let weights = power_law(self.n_features, self.probability_power);
        let total: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| self.mean_active * weight / total).collect()
    }

    /// norm_i of every feature.
    pub fn norms(&self) -> Vec<f64> {
        power_law(self.n_features, self.norm_power)
    }
}

/// i^-power for i = 1, 2 …
fn power_law(n: usize, power: f64) -> Vec<f64> {
    (1..=n).map(|i| (i as f64).powf(-power)).collect()
}

/// `[activations]` with `source = "files"`: arrays of rows, `[rows, d]` or `[documents, rows, d]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesConfig {
    /// `.safetensors` and `.npy` files, or folders of them, as written in the sweep.
    pub files: Vec<String>,
    /// Tensor to read from safetensors files; empty means the only one.
    pub tensor: String,
    /// Share of the rows (of the documents, where there are any), taken from the end, that is held out.
    pub eval_fraction: f64,
    /// At most this many held-out rows are kept in the store.
    pub eval_rows: usize,
}

/// The sections of a configuration that the source writes.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct SourceSections {
    #[serde(skip_serializing_if = "Option::is_none")]
    activations: Option<Section>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<ModelConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<DataConfig>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
enum Section {
    Model,
    Toy(ToyConfig),
    Files(FilesConfig),
}

impl From<ActivationSource> for SourceSections {
    fn from(source: ActivationSource) -> Self {
        let other = |section| Self { activations: Some(section), model: None, data: None };
        match source {
            // Without a section: configurations from before there were other sources keep their ids.
            ActivationSource::Model { model, data } => {
                Self { activations: None, model: Some(model), data: Some(data) }
            }
            ActivationSource::Toy(toy) => other(Section::Toy(toy)),
            ActivationSource::Files(files) => other(Section::Files(files)),
        }
    }
}

impl TryFrom<SourceSections> for ActivationSource {
    type Error = String;

    fn try_from(sections: SourceSections) -> Result<Self, String> {
        match (sections.activations, sections.model, sections.data) {
            (None | Some(Section::Model), Some(model), Some(data)) => Ok(Self::Model { model, data }),
            (None | Some(Section::Model), ..) => Err("[model] or [data] is missing".to_owned()),
            (Some(Section::Toy(toy)), None, None) => Ok(Self::Toy(toy)),
            (Some(Section::Files(files)), None, None) => Ok(Self::Files(files)),
            (Some(_), ..) => {
                Err("[model] and [data] go with activations.source = \"model\" alone".to_owned())
            }
        }
    }
}
