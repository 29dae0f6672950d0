// Trains a ResNet-18 on Fashion-MNIST: the program behind `./run train`, and the one to copy.
// Invariant: nothing is trained before every option, the output folder and the data are known to be
// good, and result.json appears complete or not at all.
#include <cairn/cairn.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

using namespace cairn;

// The share of rows of logits [N, classes] that are largest at their target [N].
Tensor accuracy(const Tensor& logits, const Tensor& target) {
  return mean(to(eq(argmax(logits, 1), target), DType::f32));
}

struct ImageClassifier : trainer::TrainingModule {
  explicit ImageClassifier(double learning_rate = 1e-3) : lr(learning_rate) {
    save_hyperparameters({{"lr", lr}});
  }

  Tensor forward(const Tensor& x) { return model(x); }

  Tensor training_step(const Batch& batch, int64_t) override {
    Tensor loss = cross_entropy(forward(batch.input), batch.target);
    log("loss", loss, {.on_step = true, .prog_bar = true});
    log("train_loss", loss, {.on_step = false, .on_epoch = true, .sync_dist = true});
    return loss;
  }

  void validation_step(const Batch& batch, int64_t) override {
    const Tensor logits = forward(batch.input);
    log("val_loss", cross_entropy(logits, batch.target), {.sync_dist = true});
    log("val_accuracy", accuracy(logits, batch.target), {.prog_bar = true, .sync_dist = true});
  }

  void test_step(const Batch& batch, int64_t) override {
    log("test_accuracy", accuracy(forward(batch.input), batch.target), {.sync_dist = true});
  }

  OptimizerConfig configure_optimizers() override { return optim::adam(parameters(), {.lr = lr}); }

  double lr;
  nn::ResNet model{child("model"), nn::resnet18({.in_channels = 1, .num_classes = 10})};
};

// How long training steps take, from the end of one batch to the end of the next. Time between
// epochs and in validation does not count. On a GPU, where the host runs ahead of the steps and
// several may come at once, only the sum means something: see images_per_second.
struct StepTimer : trainer::Callback {
  using Clock = std::chrono::steady_clock;

  void on_train_start(trainer::Trainer&, trainer::TrainingModule&) override { last = Clock::now(); }
  void on_train_epoch_start(trainer::Trainer&, trainer::TrainingModule&) override {
    last = Clock::now();
  }
  void on_train_batch_end(trainer::Trainer&, trainer::TrainingModule&, const Tensor&,
                          const Batch& batch, int64_t) override {
    const Clock::time_point now = Clock::now();
    step_ms.push_back(std::chrono::duration<double, std::milli>(now - last).count());
    last = now;
    images += batch.size();
  }
  void on_validation_end(trainer::Trainer&, trainer::TrainingModule&) override {
    last = Clock::now();
  }

  bool needs_batch(const trainer::Trainer&, int64_t) const override { return false; }

  double images_per_second() const {
    double ms = 0;
    for (double step : step_ms) ms += step;
    return ms > 0 ? 1e3 * static_cast<double>(images) / ms : 0;
  }
  double median_ms() const {
    if (step_ms.empty()) return 0;
    std::vector<double> sorted = step_ms;
    std::nth_element(sorted.begin(), sorted.begin() + sorted.size() / 2, sorted.end());
    return sorted[sorted.size() / 2];
  }

  Clock::time_point last;
  std::vector<double> step_ms;
  int64_t images = 0;
};

struct Options {
  int workers = 1;
  int64_t max_epochs = 10;
  int64_t max_steps = -1;
  int64_t batch_size = 128;
  double lr = 1e-3;
  std::string precision = "32-true";
  int threads = 0;
  std::string accelerator = "auto";
  uint64_t seed = 0;
  std::string data_root = {};
  std::string output = "runs/fashion-mnist";
  std::string profile = {};
  bool resume = false;
};

// One process of each host looks for the images, and downloads them where they are missing; then
// every process loads them.
struct FashionData : trainer::DataModule {
  explicit FashionData(const Options& options) : o(options) {}

  data::MnistOptions set(bool train) const {
    return {.root = o.data_root,
            .train = train,
            .transform = {data::ToTensor(), data::Normalize({0.28604f}, {0.32025f})}};
  }
  void prepare_data() override {
    for (const bool train : {true, false}) data::FashionMNIST::fetch(set(train));
  }
  void setup(trainer::Stage) override {
    if (train_loader) return;  // by the stage before
    train_loader.emplace(
        std::make_shared<data::FashionMNIST>(set(true)),
        data::DataLoaderOptions{.batch_size = o.batch_size, .shuffle = true, .seed = o.seed});
    test_loader.emplace(std::make_shared<data::FashionMNIST>(set(false)),
                        data::DataLoaderOptions{.batch_size = 128});
  }
  data::DataLoader* train_dataloader() override { return &*train_loader; }
  data::DataLoader* val_dataloader() override { return &*test_loader; }
  data::DataLoader* test_dataloader() override { return &*test_loader; }

  const Options& o;
  std::optional<data::DataLoader> train_loader, test_loader;
};

// An earlier run's result goes only when everything is known to be good.
struct RemoveOldResult : trainer::Callback {
  explicit RemoveOldResult(std::string file) : path(std::move(file)) {}
  void on_fit_start(trainer::Trainer& trainer, trainer::TrainingModule&) override {
    if (trainer.is_global_zero()) std::filesystem::remove(path);
  }
  std::string path;
};

void add_options(CLI::App& app, Options& o) {
  app.add_option("--workers", o.workers,
                 "processes on this host that train together, each with its share of the images")
      ->capture_default_str();
  app.add_option("--max-epochs", o.max_epochs, "epochs to train")->capture_default_str();
  app.add_option("--max-steps", o.max_steps, "optimizer steps to train at most; -1: no limit")
      ->capture_default_str();
  app.add_option("--batch-size", o.batch_size, "images per step and worker")->capture_default_str();
  app.add_option("--lr", o.lr, "learning rate of Adam")->capture_default_str();
  app.add_option("--precision", o.precision,
                 "32-true, 64-true, bf16-true, 16-true, bf16-mixed or 16-mixed")
      ->capture_default_str();
  app.add_option("--threads", o.threads, "threads; 0: one per processor")->capture_default_str();
  app.add_option("--accelerator", o.accelerator, "auto (a GPU where there is one), cpu or gpu")
      ->capture_default_str();
  app.add_option("--seed", o.seed, "of the weights and the order of images")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--data-root", o.data_root,
                 "folder with the dataset; else the distribution's package, else a download");
  app.add_option("--output", o.output, "folder for metrics.csv, result.json and checkpoints/")
      ->capture_default_str();
  app.add_option("--profile", o.profile,
                 "file for a trace of the training, for chrome://tracing; also prints a table");
  app.add_flag("--resume", o.resume, "go on from the last checkpoint in the output folder");
}

void check_options(const Options& o) {
  check(o.workers >= 1 && o.workers <= 1024, "train: --workers must be 1 to 1024, got ", o.workers);
  check(o.max_epochs >= 0, "train: --max-epochs must be at least 0, got ", o.max_epochs);
  check(o.max_steps >= -1, "train: --max-steps must be at least -1, got ", o.max_steps);
  check(o.batch_size >= 1 && o.batch_size <= 60000,
        "train: --batch-size must be 1 to the 60000 images there are, got ", o.batch_size);
  check(std::isfinite(o.lr) && o.lr >= 0, "train: --lr must be finite and not negative, got ",
        o.lr);
  check(o.threads >= 0 && o.threads <= 1024, "train: --threads must be 0 to 1024, got ", o.threads);
}

// Makes the folder and shows that a file can be written there.
void prepare_output(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  check(!error, "train: --output must be a folder that can be made, got '", folder, "' (",
        error.message(), ")");
  const std::string probe = folder + "/.probe";
  AtomicFile(probe, "train").commit();
  std::filesystem::remove(probe, error);
}

// Largest resident set of this process so far, as Linux counts it.
int64_t peak_memory_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;
  return 0;
}

void write_result(const Options& o, const trainer::Trainer& trainer, const StepTimer& timer,
                  double test_accuracy, std::optional<double> train_loss, double seconds) {
  nlohmann::json result = {
      {"test_accuracy", test_accuracy},
      {"train_loss", nullptr},
      {"epochs", trainer.current_epoch()},
      {"steps", trainer.global_step()},
      {"seconds", seconds},
      {"world_size", trainer.world_size()},
      {"images_per_second", timer.images_per_second() * trainer.world_size()},
      {"step_ms_median", timer.median_ms()},
      {"peak_memory_bytes", peak_memory_bytes()},
      {"options",
       {{"workers", o.workers},
        {"max_epochs", o.max_epochs},
        {"max_steps", o.max_steps},
        {"batch_size", o.batch_size},
        {"lr", o.lr},
        {"precision", o.precision},
        {"threads", num_threads()},
        {"device", cat(trainer.strategy().root_device())},
        {"seed", o.seed},
        {"data_root", o.data_root},
        {"output", o.output},
        {"resume", o.resume}}},
      {"versions", {{"cairn", std::string(version())}, {"compiler", __VERSION__}}}};
  if (train_loss) result["train_loss"] = *train_loss;
  AtomicFile file(o.output + "/result.json", "train");
  file.write(result.dump(2) + "\n");
  file.commit();
}

void train(const Options& o) {
  prepare_output(o.output);
  if (!o.profile.empty()) AtomicFile(o.profile, "train");  // fails where no file can be made
  if (o.threads > 0) set_num_threads(o.threads);
  manual_seed(o.seed);

  FashionData data(o);
  ImageClassifier model(o.lr);
  auto timer = std::make_shared<StepTimer>();
  std::vector<trainer::Held<trainer::Callback>> callbacks{timer,
                                                          trainer::ModelCheckpoint({
                                                              .dirpath = o.output + "/checkpoints",
                                                              .filename = "best",
                                                              .monitor = "val_accuracy",
                                                              .mode = "max",
                                                              .save_last = true,
                                                              .enable_version_counter = false,
                                                          }),
                                                          trainer::ProgressBar()};
  // A resumed run's result stays until its successor replaces it.
  if (!o.resume) callbacks.emplace_back(RemoveOldResult(o.output + "/result.json"));
  trainer::Trainer trainer({.max_epochs = o.max_epochs,
                            .max_steps = o.max_steps,
                            .accelerator = o.accelerator,
                            .precision = o.precision,
                            .callbacks = callbacks,
                            .logger = trainer::CSVLogger({.dir = o.output}),
                            .profiler = o.profile.empty() ? "" : "simple"});
  const bool first = trainer.is_global_zero();
  const auto start = std::chrono::steady_clock::now();
  trainer.fit(model, data, {.ckpt_path = o.resume ? "last" : ""});
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const std::optional<double> train_loss = trainer.callback_metric("train_loss");
  if (trainer.profile() != nullptr && first) {
    trainer.profile()->write_chrome_trace(o.profile);
    std::printf("%s", trainer.profile()->table().c_str());
  }

  const double accuracy = trainer.test(model, data).at("test_accuracy");
  if (!first) return;
  write_result(o, trainer, *timer, accuracy, train_loss, seconds);
  std::printf("test accuracy: %.4f\n", accuracy);
}

// What the workers write.
std::string show(const dist::OutputLine& line) {
  return cat(line.rank != 0 ? cat("[", line.rank, "] ") : "", line.text, "\n");
}

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Trains a ResNet-18 on Fashion-MNIST.", "fashion_mnist");
  add_options(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "train: %s; --help lists the options\n", error.what());
    return 2;
  }
  try {
    check_options(options);
    if (const auto ended = trainer::launch_ranks(options.workers, argc, argv, show)) {
      std::fputs(ended->text().c_str(), stderr);
      return ended->exit_status;
    }
    trainer::choose_strategy({.accelerator = options.accelerator});  // fails where there is none
    train(options);
  } catch (const trainer::Interrupted& error) {
    std::fprintf(stderr, "%s; --resume goes on from the last epoch\n", error.what());
    return 130;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
