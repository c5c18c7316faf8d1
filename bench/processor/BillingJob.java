import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.time.Instant;
import java.util.Arrays;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.header.Headers;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/**
 * The billing processor's work as a Kafka Streams application: drop repeats, merge the event into the organization's
 * record, compute its entitlements, send the change on, and write an audit entry and a row. Exactly once (v2), state in
 * RocksDB with changelogs. Events are read in one pass and state is encoded by hand, which is the cheapest that Java
 * offers.
 *
 * <p>Arguments: brokers, topic prefix, state folder, threads.
 */
public class BillingJob {
  static final String[] CAPABILITIES = {
    "AGENTS", "ATP", "EXPIRY_TRACKING", "FORECASTING", "LOT_TRACKING", "MULTI_LOCATION", "PLANNING", "REPLENISHMENT"
  };

  public static void main(String[] args) throws Exception {
    String prefix = args[1];
    Properties p = new Properties();
    p.put(StreamsConfig.APPLICATION_ID_CONFIG, prefix + "streams");
    p.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
    p.put(StreamsConfig.STATE_DIR_CONFIG, args[2]);
    p.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, args[3]);
    p.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
    p.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 25);
    p.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
    p.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.ByteArraySerde.class);
    p.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Serdes.ByteArraySerde.class);
    p.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
    KafkaStreams streams = new KafkaStreams(topology(prefix), p);
    streams.setUncaughtExceptionHandler(
        e -> {
          e.printStackTrace();
          Runtime.getRuntime().halt(1);
          return null;
        });
    streams.start();
    System.out.println("ready");
    while (System.in.read() >= 0) {}
    streams.close();
  }

  static Topology topology(String prefix) {
    Topology t = new Topology();
    t.addSource("inbound", prefix + "inbound");
    t.addProcessor("billing", Billing::new, "inbound");
    t.addStateStore(store("seen", false), "billing");
    t.addStateStore(store("records", true), "billing");
    t.addStateStore(store("snapshots", true), "billing");
    t.addSink("events", prefix + "events", "billing");
    t.addSink("audit", prefix + "billing-audit", "billing");
    t.addSink("rows", prefix + "inbound-rows", "billing");
    return t;
  }

  static StoreBuilder<KeyValueStore<Bytes, byte[]>> store(String name, boolean cached) {
    StoreBuilder<KeyValueStore<Bytes, byte[]>> b =
        Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore(name), Serdes.Bytes(), Serdes.ByteArray());
    return cached ? b.withCachingEnabled() : b.withCachingDisabled();
  }

  static class Billing implements Processor<byte[], byte[], byte[], byte[]> {
    final ObjectMapper json = new ObjectMapper();
    final byte[] seenNow = {0, 1};
    ProcessorContext<byte[], byte[]> context;
    KeyValueStore<Bytes, byte[]> seen, records, snapshots;
    MessageDigest sha;

    @Override
    public void init(ProcessorContext<byte[], byte[]> c) {
      context = c;
      seen = c.getStateStore("seen");
      records = c.getStateStore("records");
      snapshots = c.getStateStore("snapshots");
      try {
        sha = MessageDigest.getInstance("SHA-256");
      } catch (Exception e) {
        throw new IllegalStateException(e);
      }
    }

    static String header(Headers h, String name) {
      return new String(h.lastHeader(name).value(), StandardCharsets.UTF_8);
    }

    @Override
    public void process(Record<byte[], byte[]> in) {
      try {
        apply(in);
      } catch (IOException e) {
        throw new UncheckedIOException(e);
      }
    }

    void apply(Record<byte[], byte[]> in) throws IOException {
      Headers h = in.headers();
      String org = header(h, "ce_organization"), eventId = header(h, "ce_eventid"), type = header(h, "ce_type");
      long accepted = Instant.parse(header(h, "ce_acceptedat")).toEpochMilli();
      sha.update(org.getBytes(StandardCharsets.UTF_8));
      sha.update((byte) 0);
      Bytes hash = Bytes.wrap(Arrays.copyOf(sha.digest(eventId.getBytes(StandardCharsets.UTF_8)), 16));
      if (seen.get(hash) != null) return;
      seen.put(hash, seenNow);

      Event event = Event.read(json.getFactory().createParser(in.value()));
      Bytes key = Bytes.wrap(org.getBytes(StandardCharsets.UTF_8));
      State s = State.decode(org, records.get(key));
      Snapshot snapshot = Snapshot.decode(snapshots.get(key));
      String planBefore = snapshot.plan;
      long created = event.created * 1000;
      String outcome = "processed", invoiceId = "", subscriptionId;
      if (type.startsWith("customer.subscription.")) {
        subscriptionId = event.object;
        if (created < s.eventMs) {
          outcome = "stale";
        } else {
          s.take(event, created);
          snapshot.compute(s, accepted);
          snapshots.put(key, snapshot.encode());
          context.forward(new Record<>(in.key(), update(org, snapshot, planBefore, type, created, eventId), in.timestamp(), outHeaders(h, eventId)), "events");
        }
      } else {
        invoiceId = event.object;
        subscriptionId = event.subscription;
        s.pay(type.equals("invoice.paid"), event, created);
      }
      s.updatedMs = Math.max(s.updatedMs, created);
      records.put(key, s.encode());
      context.forward(new Record<>(in.key(), row(eventId, org, type, event.id, s.customer, subscriptionId, invoiceId, planBefore, snapshot.plan, created, accepted), in.timestamp()), "audit");
      context.forward(new Record<>(in.key(), row("stripe", event.id, eventId, org, s.customer, type, outcome, "", "", accepted, 0), in.timestamp()), "rows");
    }

    static org.apache.kafka.common.header.internals.RecordHeaders outHeaders(Headers in, String cause) {
      var out = new org.apache.kafka.common.header.internals.RecordHeaders();
      for (String name : new String[] {"ce_specversion", "ce_organization", "content-type", "ce_acceptedat", "ce_time"}) {
        var h = in.lastHeader(name);
        if (h != null) out.add(h);
      }
      out.add("ce_id", ("evt_" + cause).getBytes(StandardCharsets.UTF_8));
      out.add("ce_source", "/billing".getBytes(StandardCharsets.UTF_8));
      out.add("ce_type", "subscription.updated".getBytes(StandardCharsets.UTF_8));
      out.add("ce_causationid", cause.getBytes(StandardCharsets.UTF_8));
      out.add("ce_correlationid", cause.getBytes(StandardCharsets.UTF_8));
      return out;
    }

    byte[] update(String org, Snapshot s, String planBefore, String type, long created, String cause) throws IOException {
      ObjectNode data = json.createObjectNode();
      data.put("change", type.substring(type.lastIndexOf('.') + 1));
      ObjectNode v = data.putObject("snapshot");
      v.put("organizationId", org).put("version", s.version).put("plan", s.plan).put("planVersion", "builtin-1").put("tier", s.tier).put("status", s.status);
      ObjectNode capabilities = v.putObject("capabilities");
      for (int i = 0; i < CAPABILITIES.length; i++) capabilities.put(CAPABILITIES[i], (s.capabilities & 1 << i) != 0);
      v.putObject("limits");
      v.putNull("graceUntil");
      v.put("periodEnd", Instant.ofEpochMilli(s.periodEndMs).toString());
      v.putArray("subscriptionIds").add(s.subscription);
      v.putArray("unmappedPrices");
      v.put("computedAt", Instant.ofEpochMilli(s.computedMs).toString());
      v.putObject("cause").put("source", "stripe").put("eventId", cause).put("type", type);
      data.put("previousPlan", planBefore);
      return json.writeValueAsBytes(data);
    }

    static byte[] row(String a, String b, String c, String d, String e, String f, String g, String h, String i, long x, long y) throws IOException {
      ByteArrayOutputStream bytes = new ByteArrayOutputStream(256);
      DataOutputStream out = new DataOutputStream(bytes);
      for (String s : new String[] {a, b, c, d, e, f, g, h, i}) out.writeUTF(s);
      out.writeLong(x);
      out.writeLong(y);
      return bytes.toByteArray();
    }
  }

  /** What of an event is used, read in one pass without a tree. */
  static class Event {
    String id = "", object = "", customer = "", status = "", item = "", price = "", lookupKey = "", product = "", subscription = "", currency = "";
    long created, quantity, periodStart, periodEnd, amountPaid, amountDue, attempts;

    interface Field {
      void read(String name, JsonParser p) throws IOException;
    }

    static Event read(JsonParser p) throws IOException {
      Event e = new Event();
      p.nextToken();
      each(p, e::top);
      p.close();
      return e;
    }

    /** Calls f for each member of the object that p stands on; what f does not consume is skipped. */
    static void each(JsonParser p, Field f) throws IOException {
      if (p.currentToken() != JsonToken.START_OBJECT) {
        p.skipChildren();
        return;
      }
      for (String name = p.nextFieldName(); name != null; name = p.nextFieldName()) {
        p.nextToken();
        f.read(name, p);
      }
    }

    void top(String name, JsonParser p) throws IOException {
      switch (name) {
        case "id" -> id = p.getText();
        case "created" -> created = p.getLongValue();
        case "data" -> each(p, (n, q) -> {
          if (n.equals("object")) each(q, this::object);
          else q.skipChildren();
        });
        default -> p.skipChildren();
      }
    }

    void object(String name, JsonParser p) throws IOException {
      switch (name) {
        case "id" -> object = p.getText();
        case "customer" -> customer = p.getText();
        case "status" -> status = p.getText();
        case "currency" -> currency = p.getText();
        case "amount_paid" -> amountPaid = p.getLongValue();
        case "amount_due" -> amountDue = p.getLongValue();
        case "attempt_count" -> attempts = p.getLongValue();
        case "items" -> each(p, (n, q) -> {
          if (n.equals("data")) while (q.nextToken() != JsonToken.END_ARRAY) each(q, this::item);
          else q.skipChildren();
        });
        case "parent" -> each(p, (n, q) -> {
          if (n.equals("subscription_details")) each(q, (m, r) -> {
            if (m.equals("subscription")) subscription = r.getText();
            else r.skipChildren();
          });
          else q.skipChildren();
        });
        default -> p.skipChildren();
      }
    }

    void item(String name, JsonParser p) throws IOException {
      switch (name) {
        case "id" -> item = p.getText();
        case "quantity" -> quantity = p.getLongValue();
        case "current_period_start" -> periodStart = p.getLongValue();
        case "current_period_end" -> periodEnd = p.getLongValue();
        case "price" -> each(p, (n, q) -> {
          switch (n) {
            case "id" -> price = q.getText();
            case "lookup_key" -> lookupKey = q.getText();
            case "product" -> product = q.getText();
            default -> q.skipChildren();
          }
        });
        default -> p.skipChildren();
      }
    }
  }

  /** What is known of an organization's billing: here one subscription, the last payment and the last failure. */
  static class State {
    String organization, subscription = "", customer = "", status = "", item = "", price = "", lookupKey = "", product = "", eventId = "";
    String paidInvoice = "", paidCurrency = "", paidEvent = "", failedInvoice = "", failedCurrency = "", failedEvent = "";
    long quantity, periodStartMs, periodEndMs, eventMs, paidMs, paidAmount, failedMs, failedAmount, failedAttempts, updatedMs;

    void take(Event e, long created) {
      subscription = e.object;
      customer = e.customer;
      status = e.status;
      item = e.item;
      price = e.price;
      lookupKey = e.lookupKey;
      product = e.product;
      quantity = e.quantity;
      periodStartMs = e.periodStart * 1000;
      periodEndMs = e.periodEnd * 1000;
      eventMs = created;
      eventId = e.id;
    }

    void pay(boolean paid, Event e, long created) {
      if (paid && created > paidMs) {
        paidInvoice = e.object;
        paidCurrency = e.currency;
        paidAmount = e.amountPaid;
        paidMs = created;
        paidEvent = e.id;
      } else if (!paid && created > failedMs) {
        failedInvoice = e.object;
        failedCurrency = e.currency;
        failedAmount = e.amountDue;
        failedAttempts = e.attempts;
        failedMs = created;
        failedEvent = e.id;
      }
    }

    byte[] encode() throws IOException {
      ByteArrayOutputStream bytes = new ByteArrayOutputStream(512);
      DataOutputStream out = new DataOutputStream(bytes);
      for (String s : new String[] {subscription, customer, status, item, price, lookupKey, product, eventId, paidInvoice, paidCurrency, paidEvent, failedInvoice, failedCurrency, failedEvent}) out.writeUTF(s);
      for (long l : new long[] {quantity, periodStartMs, periodEndMs, eventMs, paidMs, paidAmount, failedMs, failedAmount, failedAttempts, updatedMs}) out.writeLong(l);
      return bytes.toByteArray();
    }

    static State decode(String organization, byte[] bytes) throws IOException {
      State s = new State();
      s.organization = organization;
      if (bytes == null) return s;
      DataInputStream in = new DataInputStream(new ByteArrayInputStream(bytes));
      s.subscription = in.readUTF();
      s.customer = in.readUTF();
      s.status = in.readUTF();
      s.item = in.readUTF();
      s.price = in.readUTF();
      s.lookupKey = in.readUTF();
      s.product = in.readUTF();
      s.eventId = in.readUTF();
      s.paidInvoice = in.readUTF();
      s.paidCurrency = in.readUTF();
      s.paidEvent = in.readUTF();
      s.failedInvoice = in.readUTF();
      s.failedCurrency = in.readUTF();
      s.failedEvent = in.readUTF();
      s.quantity = in.readLong();
      s.periodStartMs = in.readLong();
      s.periodEndMs = in.readLong();
      s.eventMs = in.readLong();
      s.paidMs = in.readLong();
      s.paidAmount = in.readLong();
      s.failedMs = in.readLong();
      s.failedAmount = in.readLong();
      s.failedAttempts = in.readLong();
      s.updatedMs = in.readLong();
      return s;
    }
  }

  /** What the organization may do. */
  static class Snapshot {
    String plan = "FREE", status = "none", subscription = "";
    long version, periodEndMs, computedMs;
    int tier, capabilities;

    void compute(State s, long now) {
      version++;
      boolean active = s.status.equals("active") || s.status.equals("trialing");
      plan = active && s.lookupKey.equals("scm_pro") ? "SCM_PRO" : "FREE";
      tier = active ? 2 : 0;
      status = active ? "active" : "none";
      capabilities = active ? 0b10111110 : 0;
      subscription = s.subscription;
      periodEndMs = s.periodEndMs;
      computedMs = now;
    }

    byte[] encode() throws IOException {
      ByteArrayOutputStream bytes = new ByteArrayOutputStream(128);
      DataOutputStream out = new DataOutputStream(bytes);
      out.writeUTF(plan);
      out.writeUTF(status);
      out.writeUTF(subscription);
      out.writeLong(version);
      out.writeLong(periodEndMs);
      out.writeLong(computedMs);
      out.writeInt(tier);
      out.writeInt(capabilities);
      return bytes.toByteArray();
    }

    static Snapshot decode(byte[] bytes) throws IOException {
      Snapshot s = new Snapshot();
      if (bytes == null) return s;
      DataInputStream in = new DataInputStream(new ByteArrayInputStream(bytes));
      s.plan = in.readUTF();
      s.status = in.readUTF();
      s.subscription = in.readUTF();
      s.version = in.readLong();
      s.periodEndMs = in.readLong();
      s.computedMs = in.readLong();
      s.tier = in.readInt();
      s.capabilities = in.readInt();
      return s;
    }
  }
}
