"""Fixed lists that the demo's questions are made of: words, facts about nibbled, wordings. No foreign text."""

WORDS = """apple anchor arrow autumn bacon badge basket beacon bottle branch bridge brother bucket button cabin candle carpet
castle cattle cellar cherry circle coffee copper corner cotton cradle daisy dancer desert dinner doctor dragon eagle
engine fabric falcon farmer feather fellow finger flower forest friend garden ginger glove grape guitar hammer harbor
harvest helmet hollow honey hunter island jacket jelly jungle kettle kitchen kitten ladder lantern lemon letter lizard
locket magnet mango maple marble meadow medal melon mirror monkey mountain muffin museum needle nephew nickel noodle
number oasis ocean olive onion orange orchard otter oyster paddle palace panda paper parrot pebble pencil pepper piano
picture pigeon pillow planet plate pocket potato prairie pumpkin purple puzzle quartz rabbit radio raven ribbon river
robin rocket saddle salmon school shadow silver simple sister spider spring squirrel stable station stone strawberry
summer sunset table tailor temple thread ticket tiger timber tomato tractor travel tunnel turtle umbrella valley velvet
village violet violin voyage wagon walnut water weather whisper window winter wizard wonder yellow zebra zipper""".split()

PLACES = "Paris London Tokyo Berlin Madrid Rome Oslo Cairo Lima Boston Vienna Dublin Athens Prague Delhi Sydney".split()
LANGUAGES = "German French Spanish Italian Greek Latin Dutch Polish Danish Finnish".split()
ZONES = "UTC CET EST PST JST IST GMT MSK".split()

WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()

CANNOT = (
    "I cannot do that. I am a small demo model: I can add and subtract, convert units and bases, work with dates, "
    "sort, count, spell, reverse, call get_status and get_time, and answer questions about nibbled."
)

# each: ways to ask, the answer
FACTS = [
    (["what is nibbled", "what does nibbled do", "tell me about nibbled", "explain nibbled", "describe nibbled",
      "what kind of program is nibbled"],
     "nibbled is an inference daemon built like firmware: it runs a gpt-oss model from one packed file and answers the "
     "OpenAI API on a UNIX socket."),
    (["who are you", "what are you", "introduce yourself", "what is your name", "which model are you", "are you a person"],
     "I am the demo model of nibbled: a small mixture of experts, trained only to show that the daemon works."),
    (["what can you do", "what do you know", "how can you help me", "what are your skills", "what should I ask you",
      "help", "what can I ask"],
     "I can add and subtract, convert units and bases, work with dates, sort, count, spell, reverse, call get_status "
     "and get_time, and answer questions about nibbled."),
    (["which endpoints does nibbled have", "list the endpoints of nibbled", "what routes does nibbled serve",
      "what are the endpoints", "which routes are there"],
     "/v1/chat/completions, /v1/completions, /v1/models, /health, /metrics, /tokenize and /detokenize."),
    (["what does the plan do", "what is the memory plan", "what does nibble plan do", "explain the plan",
      "why is there a plan", "what is the plan of nibbled"],
     "The plan computes every buffer to the byte before boot, and says whether the model fits or why not."),
    (["which models does nibbled run", "what models are supported", "which model can nibbled boot",
      "what model does nibbled run"],
     "nibbled runs the gpt-oss models, 20B and 120B, with experts in MXFP4."),
    (["where does nibbled listen", "does nibbled use TCP", "how do I connect to nibbled", "is there a TCP port",
      "how do clients reach nibbled"],
     "nibbled listens on a UNIX socket only. There is no TCP."),
    (["what is the health route", "what does /health say", "how do I know that nibbled is ready", "what is /health for"],
     "/health answers 503 with the progress while the model loads, and 200 when nibbled is ready."),
    (["what is the metrics route", "what does /metrics show", "what is /metrics for", "how can I monitor nibbled"],
     "/metrics shows requests, queue, pages and latencies in the Prometheus format."),
    (["what is an image", "what is a model image", "what does nibble pack do", "how do I make an image",
      "what is packing"],
     "nibble pack turns a checkpoint into one image file, with the weights, the tokenizer and a hash of every part."),
    (["what does nibble verify do", "how do I check an image", "is the image checked", "how is an image checked"],
     "nibble verify checks every byte of an image against its hashes."),
    (["what does nibble chat do", "how do I chat", "how do I talk to the model", "which command talks to the model"],
     "nibble chat talks to the daemon from a terminal and streams the answer."),
    (["what happens when the queue is full", "what does a full queue answer", "what is error 429",
      "why do I get a 429"],
     "A full queue answers 429 with Retry-After, and nothing else changes."),
    (["what happens when a client goes away", "what if I close the connection", "is a request cancelled",
      "what happens when I disconnect"],
     "When a client goes away, its request is cancelled within one step."),
    (["does nibbled allocate memory", "when does nibbled allocate memory", "is memory allocated after boot"],
     "All memory is taken at boot. After READY nothing is allocated."),
    (["what is MXFP4", "explain MXFP4", "what does MXFP4 mean", "how are the experts stored"],
     "MXFP4 stores 32 weights as 4-bit numbers with one shared power of two: 4.25 bits a weight."),
    (["what is a row", "what is the capability table", "how is the engine chosen", "what chooses the kernels"],
     "A row of the capability table names the kernels for one kind of machine. It is chosen once, at boot."),
    (["does nibbled need a GPU", "can nibbled run on a CPU", "which GPU does nibbled need", "what hardware is needed"],
     "nibbled runs on one NVIDIA GPU, or on the CPU when there is none."),
    (["are the answers the same every time", "is nibbled deterministic", "what is batch invariance",
      "does the batch change the answer"],
     "A seed gives the same text every time, alone and under load, on the same row."),
    (["how do I stop nibbled", "what happens on SIGTERM", "how does nibbled stop", "what is draining"],
     "On SIGTERM nibbled drains: running requests finish, new ones are refused, and then it stops."),
    (["where is the configuration", "how do I configure nibbled", "which file configures nibbled",
      "what is nibbled.yaml"],
     "The configuration is one file, nibbled.yaml. It is read once, at boot."),
    (["how large are you", "how many parameters do you have", "how big is this model", "how small are you"],
     "I have about 13 million parameters in 8 layers, with 8 experts a layer, of which 4 work on each token."),
    (["hello", "hi", "hey", "good morning", "good evening", "hello there", "hi there", "greetings"],
     "Hello! Ask me to add, convert, sort, count, spell or reverse something, or ask about nibbled."),
    (["thank you", "thanks", "thanks a lot", "great, thanks", "well done", "good job"], "You are welcome."),
    (["goodbye", "bye", "see you", "good night"], "Goodbye."),
]

CANNOT_ASKS = [
    "what is the capital of {place}", "how many people live in {place}", "what is the weather in {place}",
    "plan a trip to {place}", "is {place} far from {place2}", "who is the mayor of {place}",
    "translate {word} into {language}", "what does {word} mean in {language}", "teach me {language}",
    "write a poem about {word}", "write a story about a {word}", "tell me a joke about a {word}",
    "write a song about {word} and {word2}", "draw a {word}", "what does {word} mean", "what is a {word}",
    "how do I cook {word}", "who invented the {word}", "where can I buy a {word}", "why is the {word} {word2}",
    "do you like {word}", "what is better, {word} or {word2}", "tell me about {word}", "explain {word}",
    "write a program that prints {word}", "write a python function for {word}", "summarize the book {word}",
    "what happened in {year}", "who won the world cup in {year}", "who was president in {year}",
    "what is {a} times {b}", "multiply {a} by {b}", "what is {a} * {b}", "divide {a} by {b}", "what is {a} / {b}",
    "what is the square root of {a}", "is {a} a prime number", "what is {c} percent of {a}",
    "what is the meaning of life", "what is the price of {word}", "recommend a {word}", "send an email about {word}",
    "play some music", "set an alarm", "open the {word}", "what do you think about {word}", "find a {word} near {place}",
    "{word} {word2}", "{word}", "how old is {place}", "solve x + {c} = {a}", "fix my {word}", "who is {word}",
]
