// match_tensors: a model's tensors found in a checkpoint by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "packed_files.h"
#include "store/checkpoint.h"
#include "store_files.h"
#include "tensorstream/error.h"

namespace tensorstream::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::ThrowsMessage;

using Names = std::vector<std::string>;

/// A checkpoint of one-byte tensors, each of another value.
Checkpoint checkpoint_in(const TemporaryFolder& folder, const Names& names) {
  std::string header = "{";
  for (std::size_t i = 0; i < names.size(); ++i) {
    header += (i == 0 ? "\"" : ",\"") + names[i] +
              R"(":{"dtype":"U8","shape":[1],"data_offsets":[)" + std::to_string(i) + "," +
              std::to_string(i + 1) + "]}";
  }
  return Checkpoint::open(
      folder.write("w.safetensors", safetensors_bytes(header + "}", names.size())));
}

/// Likewise, of which only the names are looked at.
Checkpoint checkpoint_of(const Names& names) { return checkpoint_in(TemporaryFolder(), names); }

Checkpoint checkpoint_with(const std::string& dtype, const std::string& shape,
                           std::size_t size_bytes) {
  const TemporaryFolder folder;
  return Checkpoint::open(folder.write(
      "w.safetensors",
      safetensors_bytes(R"({"w":{"dtype":")" + dtype + R"(","shape":)" + shape +
                            R"(,"data_offsets":[0,)" + std::to_string(size_bytes) + "]}}",
                        size_bytes)));
}

std::vector<WantedTensor> wanted_of(const std::vector<Names>& names) {
  std::vector<WantedTensor> wanted;
  for (const Names& one : names)
    wanted.push_back({.names = one, .dtype = Dtype::kU8, .shape = {1}});
  return wanted;
}

/// The names of the tensors found.
Names matched(const Checkpoint& checkpoint, const std::vector<Names>& names) {
  Names found;
  for (const CheckpointTensor* tensor : match_tensors(checkpoint, wanted_of(names))) {
    found.push_back(tensor->stored.name);
  }
  return found;
}

TEST(MatchTensors, ByTheirNames) {
  const Checkpoint checkpoint = checkpoint_of({"a.w", "b.w", "unused"});
  EXPECT_THAT(matched(checkpoint, {{"b.w"}, {"a.w"}}), ElementsAre("b.w", "a.w"));
  EXPECT_THAT(matched(checkpoint, {}), IsEmpty());
}

TEST(MatchTensors, GivesTensorsOfTheCheckpointItself) {
  const Checkpoint checkpoint = checkpoint_of({"a.w"});
  EXPECT_THAT(match_tensors(checkpoint, wanted_of({{"a.w"}})),
              ElementsAre(&checkpoint.tensors().at("a.w")));
}

TEST(MatchTensors, ATiedTensorByTheFirstOfItsNamesThatIsThere) {
  const Checkpoint checkpoint = checkpoint_of({"embed.weight", "norm"});
  EXPECT_THAT(matched(checkpoint, {{"lm_head.weight", "embed.weight"}, {"norm"}}),
              ElementsAre("embed.weight", "norm"));
}

/// Two names of one weight, the second with `second`, packed or as they are.
std::string tied_folder(const TemporaryFolder& folder, const std::string& first,
                        const NamedBytes& second, bool packed) {
  folder.write("src/model.safetensors", file_of({{"a", "BF16", "[3000000]", first}, second}));
  if (!packed) return folder.path("src");
  pack_checkpoint(folder.path("src"), folder.path("packed"), kTwoThreads, {});
  return folder.path("packed");
}

class TiedInAFile : public ::testing::TestWithParam<bool> {};

TEST_P(TiedInAFile, TheSameBytesAreOneWeight) {
  const TemporaryFolder folder;
  const std::string bytes = weights(3'000'000);
  const Checkpoint both =
      Checkpoint::open(tied_folder(folder, bytes, {"b", "BF16", "[3000000]", bytes}, GetParam()));
  const WantedTensor tied{.names = {"b", "a"}, .dtype = Dtype::kBf16, .shape = {3'000'000}};
  EXPECT_THAT(match_tensors(both, {&tied, 1}), ElementsAre(&both.tensors().at("b")));
}

TEST_P(TiedInAFile, OtherBytesAreRefusedByName) {
  const std::string bytes = weights(3'000'000);
  std::string changed = bytes;
  changed.back() = static_cast<char>(changed.back() ^ 1);
  for (const NamedBytes& second :
       {NamedBytes{"b", "BF16", "[3000000]", changed}, NamedBytes{"b", "F16", "[3000000]", bytes},
        NamedBytes{"b", "BF16", "[3000,1000]", bytes}}) {
    const TemporaryFolder folder;
    const Checkpoint both = Checkpoint::open(tied_folder(folder, bytes, second, GetParam()));
    const WantedTensor tied{.names = {"a", "b"}, .dtype = Dtype::kBf16, .shape = {3'000'000}};
    EXPECT_THAT([&] { match_tensors(both, {&tied, 1}); },
                ThrowsMessage<ConfigError>(
                    AllOf(HasSubstr("'a' and 'b' are one weight of the model, but differ"),
                          HasSubstr(both.files().front()), HasSubstr("untie"))));
  }
}

INSTANTIATE_TEST_SUITE_P(PlainAndPacked, TiedInAFile, ::testing::Bool(),
                         [](const auto& instance) { return instance.param ? "Packed" : "Plain"; });

TEST(MatchTensors, ByAPrefixThatTheCheckpointHas) {
  const Checkpoint checkpoint = checkpoint_of({"bert.layer.0.w", "bert.layer.1.w", "cls.w"});
  EXPECT_THAT(matched(checkpoint, {{"layer.1.w"}, {"layer.0.w"}}),
              ElementsAre("bert.layer.1.w", "bert.layer.0.w"));
}

TEST(MatchTensors, ByAPrefixThatTheModelHas) {
  const Checkpoint checkpoint = checkpoint_of({"layer.0.w", "layer.1.w"});
  EXPECT_THAT(matched(checkpoint, {{"model.layer.1.w"}, {"model.layer.0.w"}}),
              ElementsAre("layer.1.w", "layer.0.w"));
}

TEST(MatchTensors, ByAPrefixOfSeveralParts) {
  EXPECT_THAT(matched(checkpoint_of({"base_model.model.h.0.w", "base_model.model.h.1.w"}),
                      {{"h.0.w"}, {"h.1.w"}}),
              ElementsAre("base_model.model.h.0.w", "base_model.model.h.1.w"));
  EXPECT_THAT(matched(checkpoint_of({"h.0.w", "h.1.w"}),
                      {{"base_model.model.h.0.w"}, {"base_model.model.h.1.w"}}),
              ElementsAre("h.0.w", "h.1.w"));
}

TEST(MatchTensors, NamesAsTheyAreComeBeforePrefixes) {
  const Checkpoint checkpoint =
      checkpoint_of({"head.w", "model.head.w", "layer.w", "model.layer.w"});
  EXPECT_THAT(matched(checkpoint, {{"model.head.w"}, {"model.layer.w"}}),
              ElementsAre("model.head.w", "model.layer.w"));
}

TEST(MatchTensors, APrefixIsForAllNamesOrNone) {
  const auto refusal = ThrowsMessage<ConfigError>(HasSubstr("1 missing: 'head.w'"));
  EXPECT_THAT([] { matched(checkpoint_of({"body.w", "ema.head.w"}), {{"body.w"}, {"head.w"}}); },
              refusal);
  EXPECT_THAT([] { matched(checkpoint_of({"body.w", "w"}), {{"body.w"}, {"head.w"}}); }, refusal);
}

TEST(MatchTensors, ANameAsItIsAndByThePrefixOfTheOthersIsRefused) {
  const TemporaryFolder folder;
  const Checkpoint checkpoint = checkpoint_in(folder, {"head.w", "model.head.w", "layer.w"});
  EXPECT_THAT([&] { matched(checkpoint, {{"model.head.w"}, {"model.layer.w"}}); },
              ThrowsMessage<ConfigError>(HasSubstr("'head.w' and 'model.head.w'")));
}

TEST(MatchTensors, ATiedTensorByAPrefixOfAnyOfItsNames) {
  const Checkpoint checkpoint = checkpoint_of({"embed.w", "h.0.w"});
  EXPECT_THAT(matched(checkpoint, {{"lm_head.w", "model.embed.w"}, {"model.h.0.w"}}),
              ElementsAre("embed.w", "h.0.w"));
}

TEST(MatchTensors, TwoPrefixesThatFindTheSameTensorAreNoGuess) {
  EXPECT_THAT(matched(checkpoint_of({"w"}), {{"a.w", "b.w"}}), ElementsAre("w"));
}

TEST(MatchTensors, TheFullerOfTwoPrefixesWins) {
  const Checkpoint checkpoint =
      checkpoint_of({"student.a.w", "teacher.a.w", "teacher.b.w", "student.c"});
  EXPECT_THAT(matched(checkpoint, {{"a.w"}, {"b.w"}}), ElementsAre("teacher.a.w", "teacher.b.w"));
}

TEST(MatchTensors, TwoPrefixesThatFitEquallyAreRefused) {
  const Checkpoint checkpoint =
      checkpoint_of({"student.a.w", "student.b.w", "teacher.a.w", "teacher.b.w"});
  EXPECT_THAT([&] { matched(checkpoint, {{"a.w"}, {"b.w"}}); },
              ThrowsMessage<ConfigError>(
                  AllOf(HasSubstr("adding 'student.'"), HasSubstr("adding 'teacher.'"))));
}

TEST(MatchTensors, ATensorTakenByItsNameIsNotTakenAgainByAPrefix) {
  const Checkpoint checkpoint = checkpoint_of({"a.w"});
  EXPECT_THAT([&] { matched(checkpoint, {{"a.w"}, {"w"}}); },
              ThrowsMessage<ConfigError>(HasSubstr("1 missing: 'w'")));
}

TEST(MatchTensors, ATensorTakenByItsNameSpeaksForNoPrefix) {
  EXPECT_THAT([] { matched(checkpoint_of({"p.a", "q.a"}), {{"p.a"}, {"a"}}); },
              ThrowsMessage<ConfigError>(HasSubstr("1 missing: 'a'")));
  EXPECT_THAT([] { matched(checkpoint_of({"a", "y.a"}), {{"a"}, {"x.y.a"}}); },
              ThrowsMessage<ConfigError>(HasSubstr("1 missing: 'x.y.a'")));
}

TEST(MatchTensors, ATiedTensorCountsOnceForAPrefix) {
  const Checkpoint checkpoint = checkpoint_of({"p.t1", "p.t2", "q.t1", "q.u"});
  EXPECT_THAT(matched(checkpoint, {{"t1", "t2"}, {"u"}}), ElementsAre("q.t1", "q.u"));
}

TEST(MatchTensors, WhereNoPrefixIsEnoughTheMissingTensorsAreNamed) {
  EXPECT_THAT([] { matched(checkpoint_of({"p.a", "q.a"}), {{"a"}, {"zzz"}}); },
              ThrowsMessage<ConfigError>(HasSubstr("1 missing: 'zzz'")));
}

TEST(MatchTensors, OnlyOnePrefixIsUsed) {
  const Checkpoint checkpoint = checkpoint_of({"x.a", "x.b", "y.c"});
  EXPECT_THAT(
      [&] { matched(checkpoint, {{"a"}, {"b"}, {"c"}}); },
      ThrowsMessage<ConfigError>(AllOf(HasSubstr("1 missing: 'c'"), Not(HasSubstr("'a'")))));
}

TEST(MatchTensors, MissingTensorsAreCountedAndFiveAreNamed) {
  std::vector<Names> names;
  for (int i = 0; i < 8; ++i) names.push_back({"m" + std::to_string(i)});
  names.push_back({"there"});
  const Checkpoint checkpoint = checkpoint_of({"there", "zzz"});
  EXPECT_THAT([&] { matched(checkpoint, names); },
              ThrowsMessage<ConfigError>(AllOf(
                  HasSubstr(checkpoint.files().front()), HasSubstr("model of 9 tensors"),
                  HasSubstr("8 missing: 'm0' (U8 [1]), "), HasSubstr("'m4' (U8 [1]) and 3 more"),
                  Not(HasSubstr("m5")), HasSubstr("checkpoint has 2 tensors, the first 'there'"),
                  Not(HasSubstr("of another shape")))));
}

std::vector<WantedTensor> wanted_w(Dtype dtype, std::vector<std::uint64_t> shape) {
  return {{.names = {"w"}, .dtype = dtype, .shape = std::move(shape)}};
}

TEST(MatchTensors, AnotherShapeIsRefusedWithBothSides) {
  const Checkpoint checkpoint = checkpoint_with("BF16", "[3,2]", 12);
  EXPECT_NO_THROW(match_tensors(checkpoint, wanted_w(Dtype::kBf16, {3, 2})));
  for (const std::vector<std::uint64_t>& shape :
       {std::vector<std::uint64_t>{2, 3}, {6}, {3, 2, 1}, {}}) {
    EXPECT_THROW(match_tensors(checkpoint, wanted_w(Dtype::kBf16, shape)), ConfigError);
  }
  EXPECT_THAT([&] { match_tensors(checkpoint, wanted_w(Dtype::kBf16, {2, 3})); },
              ThrowsMessage<ConfigError>(
                  AllOf(HasSubstr("1 of another shape or type"),
                        HasSubstr("'w' (BF16 [2, 3] in the model, BF16 [3, 2] in the checkpoint)"),
                        Not(HasSubstr("missing")))));
}

TEST(MatchTensors, AnotherTypeIsRefusedWithBothSides) {
  const Checkpoint checkpoint = checkpoint_with("BF16", "[3,2]", 12);
  EXPECT_THAT([&] { match_tensors(checkpoint, wanted_w(Dtype::kF16, {3, 2})); },
              ThrowsMessage<ConfigError>(
                  HasSubstr("'w' (F16 [3, 2] in the model, BF16 [3, 2] in the checkpoint)")));
}

TEST(MatchTensors, UnlikeTensorsAreCountedAndFiveAreNamed) {
  Names names;
  std::vector<WantedTensor> wanted;
  for (int i = 0; i < 7; ++i) {
    names.push_back("u" + std::to_string(i));
    wanted.push_back({.names = {names.back()}, .dtype = Dtype::kU8, .shape = {2}});
  }
  wanted.push_back({.names = {"gone"}, .dtype = Dtype::kF4, .shape = {4}});
  const Checkpoint checkpoint = checkpoint_of(names);
  EXPECT_THAT([&] { match_tensors(checkpoint, wanted); },
              ThrowsMessage<ConfigError>(AllOf(HasSubstr("1 missing: 'gone'"),
                                               HasSubstr("7 of another shape or type"),
                                               HasSubstr(" and 2 more"), Not(HasSubstr("'u5'")))));
}

TEST(MatchTensors, PairsOfFourBitElementsAreDoubledInTheFile) {
  const Checkpoint checkpoint = checkpoint_with("F4", "[2,6]", 6);
  EXPECT_NO_THROW(match_tensors(checkpoint, wanted_w(Dtype::kF4, {2, 3})));
  EXPECT_THAT([&] { match_tensors(checkpoint, wanted_w(Dtype::kF4, {2, 6})); },
              ThrowsMessage<ConfigError>(HasSubstr("F4 [2, 12] in the model, F4 [2, 6]")));
  EXPECT_THROW(match_tensors(checkpoint, wanted_w(Dtype::kF4, {})), ConfigError);
  EXPECT_THROW(match_tensors(checkpoint, wanted_w(Dtype::kF4, {2, (1ULL << 63U) + 3})),
               ConfigError);
}

TEST(MatchTensors, ATensorWithoutANameIsMissing) {
  EXPECT_THAT([] { matched(checkpoint_of({"w"}), {{}}); },
              ThrowsMessage<ConfigError>(HasSubstr("1 missing: a tensor without a name")));
}

// Comparing each name with each other, or trying each prefix on each tensor, takes minutes here.
TEST(MatchTensors, ThousandsOfTensorsByPrefix) {
  constexpr int kBlocks = 20'000;
  Names names;
  std::vector<Names> wanted;
  for (int i = 0; i < kBlocks; ++i) {
    const std::string name = "layers." + std::to_string(i) + ".weight";
    names.push_back("model." + name);
    wanted.push_back({name});
  }
  names.push_back("x.weight");
  EXPECT_EQ(matched(checkpoint_of(names), wanted).back(), "model." + wanted.back().front());
}

}  // namespace
}  // namespace tensorstream::testing
